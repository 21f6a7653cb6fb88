"""Sessions of the runtime: which provider, which libraries, and what to say when a model cannot be loaded or run."""

import re
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx import memory
from snp_onnx.calibration.spill import is_large, spill
from snp_onnx.calibration.widening import has_narrow, is_widened, widened
from snp_onnx.errors import CalibrationError, ModelError, PlanError, SnpWarning
from snp_onnx.external import ROOT, has_external, weight_bytes
from snp_onnx.writing import Scratch

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
"""Products in full float32, and convolutions chosen by rule: timing them, the default, may choose others every time."""
NOTHING_LOGGED = 4
"""The runtime's severity `fatal`: what it logs of a failure, in colours, stands in its exception too."""
BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
NO_COPIES = "session.disable_prepacking"
NO_FOLDING = ["ConstantFolding"]
"""A weight that is cast or transposed would stay in memory in both forms."""
ROOM_FOR_SESSIONS = 2
"""Times the weights of a model in files that must be free, for the next session and its run, where one stays."""


SHARED_MEMORY = "session.use_env_allocators"


@contextmanager
def one_memory() -> Iterator[None]:
    """Sessions for one pass take their memory from one pool while this lasts, and don't make it anew each.

    The pool is the runtime's for the whole process; at the end an empty one takes its place, which frees it.
    """
    ort = runtime_module()
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)

    def renew() -> None:
        with suppress(Exception):  # a runtime that knows no second pool keeps the first one
            ort.create_and_register_allocator(place, None)

    renew()
    try:
        yield
    finally:
        renew()


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where models run: `cpu`, `cuda`, or any provider of the installed onnxruntime by name.

    `threads` None is the runtime's own choice; `custom_ops` are paths of libraries with custom operators.
    """

    provider: str = "cpu"
    threads: int | None = None
    custom_ops: tuple[str, ...] = ()


def open_session(
    model: onnx.ModelProto | bytes | str | Path,
    runtime: Runtime,
    weights_folder: str | Path | None = None,
    for_one_pass: bool = False,
    stays: bool = False,
    timed: bool = False,
    profile: str = "",
    plain: bool = False,
) -> "onnxruntime.InferenceSession":
    """A session for a model in memory, serialised, or at a path; `weights_folder` has the external data of the former.

    `for_one_pass` does without the memory plan that the runtime makes in the first run: over a few batches it costs
    more than it saves; and it takes memory from the pool of `one_memory`, if there is one. A model in memory whose
    weights lie in files gets a session that is there only while it runs where memory is short, so that two of them
    never have their weights in memory together; `stays` asks for one that stays. A model in bfloat16 that the runtime
    can't load is run in float32. On CUDA the same bits come out every time, unless the session is to be `timed`: then
    the runtime looks for the fastest convolutions, as for its users. `profile` is the prefix of the file of node
    times that the runtime writes. `plain` runs the nodes as they stand, none fused: a failure names one of the model's.
    """
    if isinstance(model, onnx.ModelProto) and weights_folder is None and has_external(model):
        if stays or for_one_pass:
            return open_session(model.SerializeToString(), runtime, ROOT, for_one_pass, timed=timed)
        return _Passing(model.SerializeToString(), runtime, ROOM_FOR_SESSIONS * weight_bytes(model))
    if isinstance(model, onnx.ModelProto) and is_large(model):
        with Scratch() as folder:
            return open_session(spill(model, folder), runtime, for_one_pass=for_one_pass, timed=timed)
    ort = runtime_module()
    options = _options(ort, runtime, weights_folder)
    options.enable_mem_pattern = not for_one_pass
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if for_one_pass and weights_folder is None:
        options.add_session_config_entry(SHARED_MEMORY, "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if weights_folder is not None:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry(NO_COPIES, "1")
    providers = _providers(ort, runtime.provider, timed)
    options.use_deterministic_compute = not timed and len(providers) > 1
    payload = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    if isinstance(payload, str | Path) and not Path(payload).is_file():
        raise ModelError(f"there is no model file {str(payload)!r}: check the path")
    unwanted = NO_FOLDING if weights_folder is not None and not for_one_pass else []
    try:
        session = ort.InferenceSession(
            payload if isinstance(payload, bytes) else str(payload),
            options,
            providers=providers,
            disabled_optimizers=unwanted,
        )
    except Exception as error:
        wider = _wider(payload)
        if wider is not None:
            return open_session(wider, runtime, weights_folder, for_one_pass, timed=timed)
        raise ModelError(_load_failure(ort, payload, error)) from error
    if len(providers) > 1 and CUDA not in session.get_providers():
        _warn_about_cuda("its libraries failed to load")
    return session


def provider_name(runtime: Runtime) -> str:
    """The provider that sessions will run on, by its full name."""
    first = _providers(runtime_module(), runtime.provider, True)[0]
    return first if isinstance(first, str) else str(first[0])


def _wider(payload: bytes | str | Path) -> bytes | None:
    """The same model in float32, if it is in bfloat16 and in memory."""
    if not isinstance(payload, bytes):
        return None
    try:
        model = onnx.ModelProto.FromString(payload)
    except Exception:  # what the runtime said of it stands
        return None
    return widened(model).SerializeToString() if has_narrow(model) and not is_widened(model) else None


class _Passing:
    """What is asked of a session, by one that is closed after a run unless `room` bytes are free."""

    def __init__(self, payload: bytes, runtime: Runtime, room: int) -> None:
        self._payload, self._runtime, self._room = payload, runtime, room
        self._stayed: onnxruntime.InferenceSession | None = None
        with self._session() as session:
            self._inputs, self._outputs = session.get_inputs(), session.get_outputs()

    @contextmanager
    def _session(self) -> Iterator["onnxruntime.InferenceSession"]:
        """The session that stayed, or another one."""
        session = self._stayed or open_session(self._payload, self._runtime, ROOT)
        self._stayed = None
        yield session
        self._stayed = session if memory.has_room(self._room) else None

    def get_inputs(self) -> Any:
        return self._inputs

    def get_outputs(self) -> Any:
        return self._outputs

    def run(self, names: list[str], feed: Mapping[str, Any]) -> Any:
        with self._session() as session:
            return session.run(names, feed)


def run(session: "onnxruntime.InferenceSession", feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs that are arrays or stand for some, by name; arrays that are no input of the session aren't fed."""
    wanted = fed(session, feed)
    names = [value.name for value in session.get_outputs()]
    try:
        results = session.run(names, wanted)
    except Exception as error:
        raise run_failure(wanted, error) from error
    parts = (part for name, result in zip(names, results, strict=True) for part in _parts(name, result))
    arrays = {name: _as_array(result) for name, result in parts}
    return {name: array for name, array in arrays.items() if array is not None}


def _parts(name: str, result: Any) -> list[tuple[str, Any]]:
    """An output by its name; the arrays of a sequence by name and place.

    >>> _parts("y", [np.zeros(1), np.ones(2)])
    [('y[0]', array([0.])), ('y[1]', array([1., 1.]))]
    """
    is_sequence = isinstance(result, list) and all(isinstance(part, np.ndarray) for part in result)
    return [(f"{name}[{place}]", part) for place, part in enumerate(result)] if is_sequence else [(name, result)]


def output_of(name: str, outputs: Container[str]) -> str:
    """The output among these that an array of a run is, or is an element of.

    >>> output_of("y[1]", {"x", "y"}), output_of("x", {"x", "y"})
    ('y', 'x')
    """
    return name if name in outputs else name.rpartition("[")[0]


def _as_array(result: Any) -> NDArray[Any] | None:
    """A ZipMap's output, a map of classes for each sample, as (samples, classes); None for any other that is no array.

    >>> _as_array([{"a": 0.25, "b": 0.75}, {"a": 1.0, "b": 0.0}]).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    if not isinstance(result, list):
        return np.asarray(result) if isinstance(result, np.ndarray | np.generic) else None
    are_maps = bool(result) and all(isinstance(row, dict) and row.keys() == result[0].keys() for row in result)
    return np.array([list(row.values()) for row in result]) if are_maps else None


def fed(session: Any, feed: Mapping[str, Any]) -> dict[str, Any]:
    """What a session reads of a feed, in forms that it takes; CalibrationError where something is missing."""
    wanted = [value.name for value in session.get_inputs()]
    missing = [name for name in wanted if name not in feed]
    if missing:
        raise CalibrationError(f"the batch lacks the input {missing[0]!r}: it has {sorted(feed)}")
    return {name: _in_wide(feed[name]) for name in wanted}


def run_failure(feed: Mapping[str, Any], error: Exception) -> CalibrationError:
    """What to raise where a run fails."""
    shapes = ", ".join(f"{name} {_shape(value)}" for name, value in feed.items())
    return CalibrationError(f"the runtime cannot run the batch ({shapes}): {_in_short(error)}")


def _shape(value: Any) -> tuple[int, ...]:
    """Of an array, or of a value of the runtime, which isn't fetched from its device for that."""
    return tuple(value.shape()) if callable(getattr(value, "shape", None)) else np.shape(value)


def _in_wide(values: Any) -> Any:
    """bfloat16, which the runtime's interface doesn't know, as float32."""
    is_narrow = isinstance(values, np.ndarray) and values.dtype == BFLOAT16
    return values.astype(np.float32) if is_narrow else values


def runtime_module() -> Any:
    """onnxruntime; PlanError where it isn't installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise PlanError(f"onnxruntime is installed but can't be loaded: {error}") from error
        raise PlanError("onnxruntime is not installed: pip install snp-onnx[cpu]") from None
    except ImportError as error:
        raise PlanError(f"onnxruntime is installed but can't be loaded: {_in_short(error)}") from error
    return onnxruntime


def runtime_version() -> str:
    """The version of the installed onnxruntime."""
    return str(runtime_module().__version__)


def _options(ort: Any, runtime: Runtime, weights_folder: str | Path | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = NOTHING_LOGGED
    if runtime.threads is not None:
        options.intra_op_num_threads = runtime.threads
    if weights_folder is not None:
        options.add_session_config_entry(FOLDER_OF_WEIGHTS, str(weights_folder))
    for library in runtime.custom_ops:
        if not Path(library).is_file():
            raise ModelError(f"there is no custom operator library {library!r}: check the path")
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:
            raise ModelError(f"the custom operator library {library!r} cannot be used: {_in_short(error)}") from error
    return options


def _providers(ort: Any, name: str, timed: bool) -> list[Any]:
    """What onnxruntime takes; a CUDA that is not there becomes the CPU, said aloud."""
    available = ort.get_available_providers()
    by_name = {provider.lower(): provider for provider in available}
    by_name |= {provider.removesuffix("ExecutionProvider").lower(): provider for provider in available}
    provider = by_name.get(name.lower())
    if provider == CUDA:
        return [(CUDA, {"use_tf32": "0"} if timed else CUDA_OPTIONS), CPU]
    if provider is not None:
        return [provider] if provider == CPU else [provider, CPU]
    if name.lower() in ("cuda", CUDA.lower()):
        _warn_about_cuda(f"onnxruntime {ort.__version__} has no CUDA: pip install snp-onnx[gpu]")
        return [CPU]
    raise PlanError(f"onnxruntime has no provider {name!r}: choose from {', '.join(sorted(available))}")


def _warn_about_cuda(reason: str) -> None:
    warnings.warn(f"running on the CPU, not on CUDA: {reason}", SnpWarning, stacklevel=3)


def _load_failure(ort: Any, payload: bytes | str | Path, error: Exception) -> str:
    reason = f"onnxruntime {ort.__version__} cannot load the model: {_in_short(error)}"
    if not re.search(r"opset|ir.?version", reason, re.IGNORECASE):
        return reason
    try:
        proto = onnx.ModelProto.FromString(payload if isinstance(payload, bytes) else Path(payload).read_bytes())
    except Exception:  # the reason stands without the versions
        return reason
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in proto.opset_import)
    versions = f"IR version {proto.ir_version} and opset {opsets}"
    return f"{reason} (the model has {versions}: convert it or update onnxruntime)"


_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_FAILED_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ")
_PLACE = re.compile(
    r"[\w./+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ (?:[^.]*?\) (?:const )?(?=[A-Z])|.*? was false\. |\w+ (?=\w))?"
)
"""A line of the runtime's C++ source, with the function and the condition that failed."""
MOST_SAID = 400
"""Characters of the runtime's words that an error takes over."""


def _in_short(error: Exception) -> str:
    """The runtime's own words in one line, node first, less its error code and the place in its C++ source.

    >>> _in_short(Exception("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node. "
    ...     "Name:'sum' Status Message: /src/ops.h:583 void ort::Append(long, long) a == b was false. 5 by 6"))
    'node sum (Add): 5 by 6'
    >>> _in_short(Exception("Got invalid dimensions for input: x\\n index: 1 Got: 4 Expected: 3"))
    'Got invalid dimensions for input: x index: 1 Got: 4 Expected: 3'
    """
    words = " ".join(str(error).split("Stacktrace:")[0].split()) or type(error).__name__
    words = _FAILED_NODE.sub(lambda found: f"node {found[2] or 'without a name'} ({found[1]}): ", _CODE.sub("", words))
    words = _PLACE.sub("", words).strip()
    return words if len(words) <= MOST_SAID else f"{words[:MOST_SAID]}..."
