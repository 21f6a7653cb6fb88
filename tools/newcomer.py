"""A newcomer's path, timed: from an empty folder to a pruned, quantised and compared model, with nothing but the wheel.

Builds the wheel, installs it into an environment of its own (from the package index, as a user does), and runs the
commands that a user types: inspect, prune with a folder of images, `quantize_static`, compare. Each is shown with
all that it prints; a table of what took how long, and of what came out, stands at the end.

    python tools/newcomer.py                                     # the digits sample of models/
    python tools/newcomer.py --model resnet56.onnx --images train.npz --test test.npz --convention imagenet
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_BUILT_FROM = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")

WRITE_DIGITS = """
import numpy as np
from PIL import Image
from pathlib import Path

digits = np.load({data!r})
Path("images").mkdir()
for number, image in enumerate(digits["images"][:{count}]):
    Image.fromarray(image[0] * 15).save(f"images/{{number:04}}.png")  # 0..16 becomes 0..240
np.savez("test.npz", images=digits["test_images"] * 15, labels=digits["test_labels"])
"""

WRITE_IMAGES = """
import numpy as np
from PIL import Image
from pathlib import Path

Path("images").mkdir()
for number, image in enumerate(np.load({data!r})["images"][:{count}]):
    Image.fromarray(image).save(f"images/{{number:04}}.png")
"""

QUANTISE = """
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

SCALE, MEAN, STD = {scale}, {mean}, {std}  # as for `snp-onnx prune`


class Reader(CalibrationDataReader):
    def __init__(self, folder):
        self.paths = iter(sorted(Path(folder).iterdir()))

    def get_next(self):
        path = next(self.paths, None)
        if path is None:
            return None
        pixels = np.asarray(Image.open(path), np.float32)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        values = (pixels * SCALE - np.array(MEAN)) / np.array(STD)
        return {{"input": values.transpose(2, 0, 1)[None].astype(np.float32)}}


quant_pre_process("small.onnx", "prepared.onnx", skip_symbolic_shape=True)  # the symbolic one needs sympy
quantize_static(
    "prepared.onnx",
    "int8.onnx",
    Reader("images"),
    quant_format=QuantFormat.QDQ,
    per_channel=True,
    activation_type=QuantType.QUInt8,  # twice as quick as QInt8 on x86-64
    weight_type=QuantType.QInt8,
)
"""

PREPARED = {
    "imagenet": ("1 / 255", "(0.485, 0.456, 0.406)", "(0.229, 0.224, 0.225)"),
    "imagenet-tf": ("1 / 127.5", "1.0", "1.0"),
    "none": ("1.0", "0.0", "1.0"),
}


@dataclass(slots=True)
class Journey:
    """The folder in which everything happens, and a row of the table for every step."""

    folder: Path
    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def step(self, name: str, command: list[str], found: Callable[[str], str]) -> None:
        """Run a command in the folder, show all it prints, and keep what `found` makes of its output."""
        print(f"\n$ {shlex.join(command)}", flush=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SNP_ONNX"))}
        environment["PATH"] = f"{self.bin}{os.pathsep}{environment.get('PATH', '')}"
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        seconds = time.perf_counter() - start
        print(done.stdout, end="", flush=True)
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}; the folder is {self.folder}")
        self.rows.append((name, seconds, found(done.stdout)))

    def script(self, name: str, title: str, text: str, found: Callable[[str], str]) -> None:
        """Write a Python script into the folder and run it."""
        (self.folder / name).write_text(text.lstrip(), encoding="utf-8")
        self.step(title, [str(self.bin / "python"), name], found)

    def show(self) -> None:
        width = max(len(name) for name, _, _ in self.rows)
        print(f"\n{'step':{width}}  seconds  what came out")
        for name, seconds, outcome in self.rows:
            print(f"{name:{width}}  {seconds:7.1f}  {outcome}")
        print(f"{'all':{width}}  {sum(seconds for _, seconds, _ in self.rows):7.1f}  {self.folder}")


def main() -> None:
    """Walk the path and show the table."""
    asked = _asked()
    journey = Journey(_empty(asked.folder or Path(tempfile.mkdtemp(prefix="newcomer-"))).resolve())
    install(journey)
    options = material(journey, asked)
    work(journey, asked, options)
    journey.show()


def _empty(folder: Path) -> Path:
    """A folder in which nothing is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder}: not empty: name a new folder")
    return folder


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="an image classifier; the digits sample by default")
    parser.add_argument(
        "--images", type=Path, help="a folder of images, or an .npz whose uint8 NHWC 'images' become one"
    )
    parser.add_argument("--test", type=Path, help="an .npz with 'images' and 'labels' that weren't calibrated on")
    parser.add_argument("--convention", choices=PREPARED, default="imagenet", help="how images are prepared")
    parser.add_argument("--count", type=int, default=512, help="images that are written out")
    parser.add_argument("--target-macs", default="0.5")
    parser.add_argument("--round-to", default="8", help="widths that integer kernels like")
    parser.add_argument("--folder", type=Path, help="where everything happens; a new temporary folder by default")
    asked = parser.parse_args()
    if (asked.model is None) != (asked.images is None):
        parser.error("--model and --images go together")
    return asked


def install(journey: Journey) -> None:
    """The wheel, built from a copy of the checkout, in an environment of its own."""
    with tempfile.TemporaryDirectory() as room:
        source = Path(room, "source")
        shutil.copytree(ROOT, source, ignore=NOT_BUILT_FROM, symlinks=True)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", str(source)]
        journey.step("build the wheel", build, lambda _: next(journey.folder.glob("*.whl")).name)
    wheel = next(journey.folder.glob("*.whl"))
    journey.step("make an environment", [sys.executable, "-m", "venv", "venv"], lambda _: "venv/")
    command = [str(journey.bin / "python"), "-m", "pip", "install", "--quiet", f"./{wheel.name}[cpu,report]"]
    journey.step("install", command, lambda _: f"{_bytes(journey.folder / 'venv')} in venv/")
    journey.step("ask for the version", ["snp-onnx", "--version"], str.strip)


def material(journey: Journey, asked: argparse.Namespace) -> list[str]:
    """`model.onnx`, `images/` and `test.npz` in the folder; and the options that say how images are prepared."""
    shutil.copy(asked.model or ROOT / "models" / "digits.onnx", journey.folder / "model.onnx")
    if asked.images is not None and asked.images.is_dir():
        shutil.copytree(asked.images, journey.folder / "images")
    else:
        text = WRITE_DIGITS if asked.images is None else WRITE_IMAGES
        data = str(asked.images.resolve() if asked.images else ROOT / "models" / "digits.npz")
        text = text.format(data=data, count=asked.count)
        journey.script("images.py", "write images", text, lambda _: f"{_count(journey.folder / 'images')} PNG files")
    if asked.test is not None:
        shutil.copy(asked.test, journey.folder / "test.npz")
    return ["--scale", str(1 / 240)] if asked.model is None else ["--convention", asked.convention]


def work(journey: Journey, asked: argparse.Namespace, options: list[str]) -> None:
    """Inspect, prune, quantise, compare."""
    journey.step("inspect", ["snp-onnx", "inspect", "model.onnx", "--html", "inspect.html"], _costs)
    prune = ["snp-onnx", "prune", "model.onnx", "small.onnx", "--calibration", "images/", *options]
    prune += ["--target-macs", asked.target_macs, "--round-to", asked.round_to, "--report", "report.html"]
    journey.step("prune", prune, lambda _: f"small.onnx {_bytes(journey.folder / 'small.onnx')}, report.html")
    scale, mean, std = PREPARED[asked.convention] if asked.model else ("1 / 240", "0.0", "1.0")
    text = QUANTISE.format(scale=scale, mean=mean, std=std)
    journey.script("quantise.py", "quantise", text, lambda _: f"int8.onnx {_bytes(journey.folder / 'int8.onnx')}")
    if not (journey.folder / "test.npz").exists():
        return
    for name in ("small.onnx", "int8.onnx"):
        compare = ["snp-onnx", "compare", "model.onnx", name, "--calibration", "test.npz", *options]
        compare += ["--input-array", "images", "--label-array", "labels", "--latency", "--threads", "1"]
        journey.step(f"compare {name}", compare, _judgement)


def _costs(output: str) -> str:
    """The line of costs that `inspect` begins with, notes aside."""
    return next(line for line in output.splitlines() if " MACs, " in line)


def _judgement(output: str) -> str:
    """The accuracies and the time of the tables that `compare` prints."""
    rows = [re.findall(r"[\d.]+(?: %)?", line) for line in output.splitlines() if line.startswith("│")]
    accuracies = next(row[-2:] for row in rows if row and row[-1].endswith("%"))
    *_, undisturbed, _ = rows[-1]
    return f"top-1 {accuracies[0]} -> {accuracies[1]}, {undisturbed} of the time"


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def _bytes(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
