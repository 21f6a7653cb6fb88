"""Coordinates that are easy to train in: weights times a root of the moments of what they read.

A layer's error is quadratic in its weights with the moments G of its inputs as curvature, and those of a trained
network are so uneven that plain gradients get nowhere. So a layer y = W x is trained as y = V R⁻¹ x with V = W R and
R Rᵀ = G + Λ: inputs of unit moments. A step down the gradient of V is one of W down its gradient times (G + Λ)⁻¹, the
same matrix that folds and refits. Λ is their ridge, ρ max(G_ii, 1e-3 mean diag G), relative to each
input; biases are weights of a constant input 1, with Λ = 0 but for the numerics.

Equivalent to gradient descent with the input factor of K-FAC alone (Benzing 2022, arXiv 2201.12250), taken once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snp_onnx.recovery.graph import GraphModule, Step
from snp_onnx.recovery.operators.kernel import spatial_pads, torch_pads

RIDGE = 0.1
"""ρ: a tenth of each input's own energy."""

_FLOOR = 1e-3
_CONSTANT = 1e-6
"""Λ of the constant input."""

WIDEST = 2048
"""Inputs of a layer, or a group of it, from which on the product with R⁻¹ would cost more than the layer."""

_ROWS = 20_000
"""Positions of the samples that moments are taken from, a batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A step that multiplies by a weight nothing else reads, as matrices (groups, outputs, inputs)."""

    input: str
    weight: str
    bias: str
    """Empty where there is none that belongs to the step."""
    rows: Callable[[Tensor], Tensor]
    """(positions, groups, inputs) of the input."""
    matrix: Callable[[Tensor], Tensor]
    tensor: Callable[[Tensor], Tensor]
    """The way back."""


class Coordinates(nn.Module):
    """The weights of a student, those of its layers in whitened coordinates; the moments come from `feeds`."""

    def __init__(self, student: GraphModule, feeds: Iterable[Mapping[str, Tensor]], whitens: bool = True) -> None:
        super().__init__()
        self._student = [student]  # in a list: its parameters are not ours
        weights = student.weights
        layers = layers_of(student) if whitens else ()
        moments = _moments(student, layers, feeds)
        self._layers = [layer for layer in layers if layer.weight in moments]
        mine = {name for layer in self._layers for name in (layer.weight, layer.bias)}
        self.plain = {name: weight for name, weight in weights.items() if name not in mine}
        self._roots: list[Tensor] = []
        whitened = []
        for layer in self._layers:
            root = torch.linalg.cholesky(_ridged(moments[layer.weight], bool(layer.bias)))
            inverse = torch.linalg.solve_triangular(root, torch.eye(root.shape[-1]).to(root), upper=False)
            joined = layer.matrix(weights[layer.weight].detach()).double()
            if layer.bias:
                shift = weights[layer.bias].detach().double().reshape(*joined.shape[:2], 1)
                joined = torch.cat([joined, shift], -1)
            self._roots.append(inverse.float())
            whitened.append(nn.Parameter((joined @ root).float()))
        self.whitened = nn.ParameterList(whitened)

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [*self.whitened, *self.plain.values()]

    def weights(self) -> dict[str, Tensor]:
        """All weights by the names they have in the graph."""
        found: dict[str, Tensor] = dict(self.plain)
        for layer, values, inverse in zip(self._layers, self.whitened, self._roots, strict=True):
            joined = values @ inverse
            if layer.bias:
                found[layer.bias] = joined[..., -1].reshape(-1)
                joined = joined[..., :-1]
            found[layer.weight] = layer.tensor(joined)
        return found


def layers_of(student: GraphModule) -> tuple[Layer, ...]:
    """Convolutions of one and two axes, and products with a matrix; all other weights stay as they are."""
    weights = student.weights
    reads = Counter(name for step in student.steps for name in step.inputs)
    found = []
    for step in student.steps:
        make = _MAKERS.get(step.op.type) if step.op.is_standard else None
        if make is None or len(step.inputs) < 2:
            continue
        weight = step.inputs[1]
        if weight not in weights or reads[weight] > 1 or step.inputs[0] in weights:
            continue
        bias = step.inputs[2] if len(step.inputs) > 2 else ""
        owned = bias if bias in weights and reads[bias] == 1 else ""
        layer = make(step, weights[weight], owned, weights)
        if layer is not None and layer.matrix(weights[weight]).shape[-1] <= WIDEST:
            found.append(layer)
    return tuple(found)


def _conv(step: Step, weight: Tensor, bias: str, weights: Mapping[str, Tensor]) -> Layer | None:
    rank, op = weight.ndim - 2, step.op
    if rank not in (1, 2):
        return None
    group, kernel = int(op.attr("group", 1)), list(weight.shape[2:])
    strides, dilations = (list(op.attr(name, None) or [1] * rank) for name in ("strides", "dilations"))

    def rows(x: Tensor) -> Tensor:
        before, after = spatial_pads(op, x.shape[2:], kernel, strides, dilations)
        x = F.pad(x, torch_pads(before, after))
        flat, sides = (x.unsqueeze(2), 1) if rank == 1 else (x, 0)
        whole = (tuple([1] * sides + given) for given in (kernel, dilations, strides))
        windows = F.unfold(flat, next(whole), next(whole), 0, next(whole))
        return windows.transpose(1, 2).reshape(-1, group, windows.shape[1] // group)

    shape = weight.shape
    return Layer(
        step.inputs[0], step.inputs[1], bias, rows,
        lambda w: w.reshape(group, shape[0] // group, -1), lambda m: m.reshape(shape),
    )  # fmt: skip


def _gemm(step: Step, weight: Tensor, bias: str, weights: Mapping[str, Tensor]) -> Layer | None:
    op = step.op
    if op.attr("transA", 0) or op.attr("alpha", 1.0) != 1.0:
        return None
    is_turned = bool(op.attr("transB", 0))
    outputs = weight.shape[0 if is_turned else 1]
    owned = bias if bias and op.attr("beta", 1.0) == 1.0 and weights[bias].numel() == outputs else ""

    def turned(w: Tensor) -> Tensor:
        return w if is_turned else w.transpose(-1, -2)

    return Layer(
        step.inputs[0], step.inputs[1], owned, lambda x: x.reshape(-1, 1, x.shape[-1]),
        lambda w: turned(w)[None], lambda m: turned(m[0]),
    )  # fmt: skip


def _matmul(step: Step, weight: Tensor, bias: str, weights: Mapping[str, Tensor]) -> Layer | None:
    if weight.ndim != 2:
        return None
    return Layer(
        step.inputs[0], step.inputs[1], "", lambda x: x.reshape(-1, 1, x.shape[-1]),
        lambda w: w.transpose(0, 1)[None], lambda m: m[0].transpose(0, 1),
    )  # fmt: skip


_MAKERS = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}


def _moments(student: GraphModule, layers: Sequence[Layer], feeds: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of the outer products of (groups, inputs + 1), by weight; layers of inputs that aren't finite have none."""
    totals: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    names = list(dict.fromkeys(layer.input for layer in layers))
    for feed in feeds if layers else ():
        with torch.no_grad():
            values = student.tensors(feed, names)
            for layer in layers:
                rows = _joined(_thinned(layer.rows(values[layer.input].float())), bool(layer.bias))
                product = rows.transpose(-1, -2) @ rows
                totals[layer.weight] = totals.get(layer.weight, torch.zeros_like(product)) + product
                counts[layer.weight] += rows.shape[1]
    found = {name: total / counts[name] for name, total in totals.items()}
    return {name: value for name, value in found.items() if bool(torch.isfinite(value).all())}


def _thinned(rows: Tensor) -> Tensor:
    """A part of the rows, evenly taken; the step is odd, so that it walks over all columns of an image."""
    step = max(1, len(rows) // _ROWS)
    return rows[:: step + 1 - step % 2]


def _joined(rows: Tensor, has_bias: bool) -> Tensor:
    """(groups, positions, inputs + 1) in double precision, the last input 1 where the layer has a bias."""
    turned = rows.transpose(0, 1).double()
    return F.pad(turned, [0, 1], value=1.0) if has_bias else turned


def _ridged(moments: Tensor, has_bias: bool) -> Tensor:
    """G + Λ."""
    energy = moments.diagonal(dim1=-2, dim2=-1)
    inputs = energy[..., :-1] if has_bias else energy
    mean = inputs.mean(-1, keepdim=True)
    ridge = RIDGE * torch.maximum(inputs, _FLOOR * mean) + torch.finfo(torch.float32).tiny
    ridge = torch.where(mean > 0, ridge, torch.ones_like(ridge))  # no input was ever seen: coordinates stay
    if has_bias:
        ridge = F.pad(ridge, [0, 1], value=_CONSTANT)
    return moments + torch.diag_embed(ridge)
