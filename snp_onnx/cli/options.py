"""Options as tables: several commands take the same ones, and a verb gets them as keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from snp_onnx.cli.config import take_config
from snp_onnx.errors import PlanError
from snp_onnx.planning.options import BlockScore, Fold, Preset, Ratios, Refine, Weigh
from snp_onnx.planning.training import Augmentation, Optimiser, Precision
from snp_onnx.sources.conventions import CONVENTIONS
from snp_onnx.subspace import Order
from snp_onnx.tracing import Kind

Command = Callable[..., None]


def _option(
    name: str, kind: Any, default: Any, text: str, *flags: str, among: Iterable[str] = (), **how: Any
) -> inspect.Parameter:
    """A row of the tables below; `among` are the words that a shell offers for its value."""
    if words := tuple(map(str, among)):
        how["autocompletion"] = lambda incomplete: offered(words, incomplete)
    annotation = Annotated[kind, typer.Option(*flags, help=text, **how)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def offered(words: Sequence[str], incomplete: str) -> list[str]:
    """What a shell may put in place of what is typed so far; of a list `a,b`, in place of its last word.

    >>> offered(("channels", "heads", "head-dims"), "channels,he")
    ['channels,heads', 'channels,head-dims']
    """
    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{word}" for word in words if word.startswith(last)]


def _section(heading: str, *options: inspect.Parameter) -> tuple[inspect.Parameter, ...]:
    """These options under a heading of their own in the command's help."""
    for option in options:
        option.annotation.__metadata__[0].rich_help_panel = heading
    return options


THREADS = "SNP_ONNX_THREADS"
"""For every run on a machine: a container with a quota of processors shows the runtime all of the host's."""

CONFIG = _option(
    "config", Path | None, None, "Options by name in FILE.yaml; those typed win.", callback=take_config, is_eager=True
)
QUIET = _option("quiet", bool, False, "Warnings and errors only.", "--quiet")
JSON = _option("json", bool, False, "Print JSON instead of tables.", "--json")
INPUT_SHAPE = _option(
    "input_shape",
    list[str] | None,
    None,
    "Of an input with dynamic axes, such as x:1,3,224,224; may be repeated.",
    metavar="NAME:SHAPE",
)
INPUT_VALUE = _option(
    "input_value",
    list[str] | None,
    None,
    "Of an input that decides shapes or branches, such as length=40; without samples, or random ones; may be repeated.",
    metavar="NAME=VALUE",
)
CUSTOM_OPS = _option(
    "custom_ops", list[Path] | None, None, "A library of custom operators; may be repeated.", metavar="FILE"
)

DASK = _option(
    "dask", str | None, None, "tcp://host:port of a Dask scheduler: its workers measure (same files at the same paths)."
)

DATA = _section(
    "Samples and how they are run",
    _option(
        "calibration",
        str | None,
        None,
        "data.npz, data.npy, polygraphy's inputs.json, a folder of them or of images, loader.py[:function], or random.",
        metavar="SOURCE",
    ),
    _option("input_array", str | None, None, "Which array of the file feeds a one-input model."),
    _option("label_array", str | None, None, "The array with class labels, for accuracies."),
    _option("mean", str | None, None, "Per channel, comma separated: (x*scale - mean) / std."),
    _option("std", str | None, None, "Per channel, comma separated."),
    _option("scale", float | None, None, "Factor before mean and std, such as 0.00392156862745098."),
    _option(
        "convention",
        str | None,
        None,
        "Scale, mean, std and cut of images: imagenet, imagenet-tf, clip or none.",
        among=CONVENTIONS,
    ),
    _option("resize", int | None, None, "Of a folder of images: the shorter side in pixels."),
    _option("crop", str | None, None, "Of a folder of images: what is cut out of the middle, N or HEIGHT,WIDTH."),
    _option("layout", str | None, None, "Layout of the data: nchw or nhwc.", among=("nchw", "nhwc")),
    _option("samples", int | None, None, "Use the first N samples."),
    _option("batch_size", int, 16, "Rows a run, where the batch is dynamic; more while measuring small activations."),
    INPUT_SHAPE,
    INPUT_VALUE,
    _option("seed", int, 0, "For random orders and random calibration."),
    _option("provider", str, "cpu", "cpu, cuda, or a provider of onnxruntime by name.", among=("cpu", "cuda")),
    _option(
        "threads", int | None, None, "Intra-op threads of the runtime; by default as many as cores.", envvar=THREADS
    ),
    CUSTOM_OPS,
)

TARGETS = _section(
    "Target (one of these)",
    _option("target_macs", float | None, None, "Keep at most this fraction of the MACs."),
    _option("target_params", float | None, None, "Keep at most this fraction of the parameters."),
    _option("target_size", float | None, None, "Keep at most this fraction of the bytes on disk."),
    _option("target_latency", float | None, None, "Take at most this fraction of the time, as measured here."),
    _option("variance", float | None, None, "The paper's τ: keep this share of the variance of every group."),
    _option(
        "min_fidelity",
        float | None,
        None,
        "As few MACs as keep R² of every output's worst channel at this, on samples set apart.",
    ),
)

CHOICES = _section(
    "What goes, and how that is decided",
    _option(
        "preset",
        str,
        "best",
        "best, fast or paper (as published); the options below change single choices.",
        among=Preset,
    ),
    _option("units", str | None, None, "What may be removed: channels,heads,head-dims,stream,blocks.", among=Kind),
    _option(
        "order", str | None, None, "How units are ranked: output, zca, saw, magnitude, natural or random.", among=Order
    ),
    _option("fold", str | None, None, "How what goes is folded into what stays: patch, channel or none.", among=Fold),
    _option(
        "refine", str | None, None, "Whether layers are solved anew after the cut: sequential or none.", among=Refine
    ),
    _option(
        "repair",
        float | None,
        None,
        "a in error / (variance (1 + a * layers behind)), by which layers are compared.",
    ),
    _option(
        "weigh",
        str | None,
        None,
        "outputs or layers: where errors are compared; by default outputs with attention.",
        among=Weigh,
    ),
    _option("ratios", str | None, None, "How widths are shared out: budget, variance or uniform.", among=Ratios),
    _option("streams", bool | None, None, "Cut convolutional residual streams too.", "--streams/--no-streams"),
    _option(
        "caches", bool | None, None, "Cut heads of key-value caches too, inputs and outputs.", "--caches/--no-caches"
    ),
    _option("include", str | None, None, "Only groups with a producer node whose name has a match.", metavar="REGEX"),
    _option("exclude", str | None, None, "No groups with a producer node whose name has a match.", metavar="REGEX"),
    _option(
        "similarity",
        str | None,
        None,
        "How blocks are ranked: cka, debiased-cka, cosine, euclidean, magnitude or random.",
        among=BlockScore,
    ),
    _option("representation", str | None, None, "The tensor compared without a block; else the last layer's input."),
    _option("ranking_samples", int | None, None, "Samples that blocks are ranked on; 256 by default."),
    _option("min_blocks", int | None, None, "Keep at least so many blocks of every stage; 1 by default."),
    _option("latency_batch", int | None, None, "Rows of the batch that latencies are of; 1 by default."),
    _option("min_units", int, 1, "Keep at least so many units of every group."),
    _option(
        "round_to",
        str,
        "1",
        "Keep multiples of this, or the dense width; auto: widths that save time here.",
        among=("auto",),
    ),
    _option(
        "fallback",
        bool | None,
        None,
        "Leave fold or refit out where samples set apart show that they harm; by default on.",
        "--fallback/--no-fallback",
    ),
    _option("ridge", float | None, None, "Ridge relative to each input's variance; ten times as much in the refit."),
)

TRAINING = _section(
    "Training",
    _option("epochs", int, 20, "Passes over the samples."),
    _option("time_limit", float | None, None, "Minutes at most; the learning rate falls to 0 within them."),
    _option("batch_size", int, 64, "Samples a step."),
    _option("optimiser", str, "adamw", "adamw or sgd.", among=Optimiser),
    _option("lr", float | None, None, "The highest learning rate (adamw 3e-4, sgd 0.01)."),
    _option("weight_decay", float, 0.0, "Of weights with two axes and more."),
    _option("momentum", float, 0.9, "Of sgd."),
    _option("warmup", float, 0.05, "The part of the training in which the learning rate rises."),
    _option("clip", float, 1.0, "The largest norm of a step's gradient."),
    _option("output_weight", float, 0.1, "Weight of the outputs' relative squared error."),
    _option("kl_weight", float, 0.0, "Weight of a classifier's divergence from the dense model's classes."),
    _option("temperature", float, 4.0, "Of the classes in that divergence."),
    _option("feature_weight", float, 1.0, "Weight of the relative squared error at the ends of residual blocks."),
    _option("label_weight", float, 1.0, "Weight of the labels' cross-entropy; only with --label-array."),
    _option("patience", int, 0, "Stop after so many checks without an improvement; 0: never."),
    _option("augment", str | None, None, "For images: any of flip,crop,mix.", among=Augmentation),
    _option("precision", str, "float32", "float32, or bfloat16: faster where the processor has it.", among=Precision),
    _option("whiten", bool, True, "Train where every layer's inputs have unit moments.", "--whiten/--no-whiten"),
    _option("device", str, "cpu", "cpu, cuda or cuda:N: where torch trains.", among=("cpu", "cuda")),
)


def takes(*options: inspect.Parameter) -> Callable[[Command], Command]:
    """Give a command that ends in `**options` these options, as if its signature had them written out."""

    def declare(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = own.replace(parameters=[*named, *options])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        return command

    return declare


def verb_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a verb takes, from what the command line gave: texts become numbers, shapes and words."""
    values = {name: value for name, value in options.items() if name != "config"}
    if values.get("layout") not in (None, "nchw", "nhwc"):
        raise PlanError(f"--layout {values['layout']!r}: give nchw or nhwc")
    for name in ("mean", "std", "crop"):
        if name in values:
            values[name] = split_numbers(values[name], f"--{name}") or None
    for name in ("units", "augment"):
        if name in values:
            values[name] = split_words(values[name])
    values["input_shapes"] = parse_shapes(values.pop("input_shape"))
    values["input_values"] = parse_values(values.pop("input_value"))
    values["custom_ops"] = tuple(map(str, values.get("custom_ops") or ()))
    return values


def split_words(text: str | None) -> list[str] | None:
    """`a,b` as a list.

    >>> split_words("channels, heads")
    ['channels', 'heads']
    """
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def split_numbers(text: str | None, option: str) -> tuple[float, ...]:
    """`0.5,0.25` as numbers.

    >>> split_numbers("0.5,0.25", "--mean")
    (0.5, 0.25)
    """
    try:
        return tuple(float(word) for word in split_words(text) or ())
    except ValueError:
        raise PlanError(f"{option} {text!r}: give numbers separated by commas") from None


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """`x:1,3,224,224` as a shape by input name.

    >>> parse_shapes(["x:1,3,8,8"])
    {'x': (1, 3, 8, 8)}
    """
    shapes = {}
    for text in texts or ():
        name, _, numbers = text.rpartition(":")
        try:
            shapes[name] = tuple(int(word) for word in numbers.split(","))
        except ValueError:
            shapes[name] = ()
        if not name or not shapes[name]:
            raise PlanError(f"--input-shape {text!r}: give NAME:1,3,224,224")
    return shapes


def parse_values(texts: Sequence[str] | None) -> dict[str, list[float | str]]:
    """`length=40`, `flags=true,false` or `names=a` as numbers, or words, by input name.

    >>> parse_values(["length=40", "flags=true,0", "names=a"])
    {'length': [40], 'flags': [1, 0], 'names': ['a']}
    """
    values = {}
    for text in texts or ():
        name, _, words = text.partition("=")
        if not name or not words:
            raise PlanError(f"--input-value {text!r}: give NAME=VALUE, or several values separated by commas")
        values[name] = [_value(word) for word in words.split(",")]
    return values


def _value(word: str) -> float | str:
    """A number where a word is one."""
    truths = {"true": 1, "false": 0}
    if word.lower() in truths:
        return truths[word.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word
