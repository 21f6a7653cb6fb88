"""Times of kernels, measured once on a machine and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from snp_onnx.calibration.kernels import Kernel, time_kernels
from snp_onnx.calibration.sessions import Runtime, provider_name, runtime_version
from snp_onnx.errors import SnpError
from snp_onnx.writing import written_whole

VERSION = 1
"""Of the file and of how times are taken: others are left alone."""
MOST_BYTES = 2**26
"""Of a file that is read: a kernel has some hundred."""
MOST_MILLISECONDS = 1e7
"""Of a kernel: a file that says more is damaged."""
FOLDER = "SNP_ONNX_CACHE"
"""The environment variable that names another folder."""


class KernelTimes:
    """The times known for one machine, runtime version, provider and thread count; saved after every measurement."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        key = {
            "version": VERSION,
            "processor": _processor(),
            "cores": os.cpu_count() or 1,
            "runtime": runtime_version(),
            "provider": provider_name(runtime),
            "threads": runtime.threads or 0,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = _folder() / f"latency-{digest}.json"
        self._key = key
        self._known = self._read()

    def of(
        self, kernels: Sequence[Kernel], seconds: float, progress: Callable[[int, int], None]
    ) -> Mapping[Kernel, float]:
        """Milliseconds of each kernel, NaN where it can't run alone; those not known yet are measured."""
        names = {kernel: kernel.description for kernel in dict.fromkeys(kernels)}
        unknown = [kernel for kernel, name in names.items() if name not in self._known]
        if unknown:
            times = time_kernels(unknown, self._runtime, seconds, lambda done: progress(done, len(unknown)))
            self._known |= {names[kernel]: ms for kernel, ms in zip(unknown, times, strict=True)}
            self._save()
        return {kernel: self._known[name] for kernel, name in names.items()}

    def _read(self) -> dict[str, float]:
        """What the file has; nothing where there is none or it is damaged: it is a cache."""
        try:
            if self.path.stat().st_size > MOST_BYTES:
                return {}
            content = json.loads(self.path.read_text(encoding="utf-8"))
            known = {str(name): float(ms) for name, ms in content["milliseconds"].items()}
            are_times = all(math.isnan(ms) or 0.0 <= ms <= MOST_MILLISECONDS for ms in known.values())
            return known if are_times and content["key"] == self._key else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}

    def _save(self) -> None:
        """Beside what another process has written meanwhile; a folder that can't be written to is no reason to stop."""
        content = {"key": self._key, "milliseconds": self._read() | self._known}
        if not self.path.is_absolute() and FOLDER not in os.environ:  # a user without a home
            return
        with suppress(OSError, SnpError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path) as draft:
                draft.write_text(json.dumps(content, indent=0, sort_keys=True), encoding="utf-8")


def _folder() -> Path:
    given = os.environ.get(FOLDER)
    return Path(given) if given else user_cache_path("snp-onnx")


def _processor() -> str:
    """The processor's model, and what it can do where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in reversed(lines) if ":" in line}
    features = hashlib.sha256(told.get("flags", told.get("Features", "")).encode()).hexdigest()[:8]
    return f"{platform.machine()} {told.get('model name', told.get('CPU part', ''))} {features}"
