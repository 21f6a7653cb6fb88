"""Torch-Pruning on the torch form of the same network with the same weights, BatchNorm folded as in the ONNX file."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.bench.rivals_judge import Bench, Way, least, open_session

REQUIRES = (("torch_pruning", "torch"), "torch-pruning==1.6.1 torch==2.13.0")
SIDE = 32
STEPS = 512
BATCH = 128


def magnitude(bench: Bench, pooled: bool, streams: bool = False) -> Way:
    """Group L2 magnitude; `pooled` ranks all layers together; `streams` lets residual streams lose width too."""
    import torch_pruning

    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    return _way(bench, torch_form(bench), importance, pooled, streams)


def taylor(bench: Bench, pooled: bool) -> Way:
    """First-order Taylor importance; the loss is the cross-entropy to the dense model's own predictions."""
    import torch_pruning

    return _way(bench, _with_gradients(bench), torch_pruning.importance.GroupTaylorImportance(), pooled, False)


def _way(bench: Bench, net: Any, importance: Any, pooled: bool, streams: bool) -> Way:
    def prune(ratio: float) -> Any:
        return _pruned(net, importance, pooled, streams, ratio)

    dense = _macs(net)
    share = cache(lambda ratio: _macs(prune(ratio)) / dense)
    return lambda target: _exported(prune(least(share, target, STEPS)))


def _pruned(net: Any, importance: Any, pooled: bool, streams: bool, ratio: float) -> Any:
    """A copy of `net` pruned in one step; the classifier's outputs stay."""
    import torch
    import torch_pruning

    pruned = _copy(net)
    layers = _convolutions(pruned)
    kept = (
        [] if streams else [layers[0], *layers[2::2]]
    )  # the stem and every block's second convolution make the stream
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        torch.zeros(1, 3, SIDE, SIDE),
        importance,
        global_pruning=pooled,
        pruning_ratio=ratio,
        ignored_layers=[*kept, _classifier(pruned)],
    )
    pruner.step()
    return pruned


def _copy(net: Any) -> Any:
    """A deep copy with the gradients, which torch leaves behind."""
    twin = copy.deepcopy(net)
    for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        ours.grad = None if theirs.grad is None else theirs.grad.clone()
    return twin


@cache
def torch_form(bench: Bench) -> Any:
    """The network as a torch module; checked against the ONNX model's outputs."""
    import torch
    from torch import nn

    from models.cifar_resnet import cifar_resnet

    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in bench.dense.graph.initializer}
    nodes = [node for node in bench.dense.graph.node if node.op_type in ("Conv", "Gemm")]
    net = cifar_resnet(depth=56)
    pairs = [pair for pair in net.modules() if isinstance(pair, nn.Sequential) and isinstance(pair[0], nn.Conv2d)]
    for pair in pairs:
        plain: Any = pair[0]
        sizes = (plain.in_channels, plain.out_channels, plain.kernel_size, plain.stride, plain.padding)
        pair[0], pair[1] = nn.Conv2d(*sizes), nn.Identity()
    for layer, node in zip([*(pair[0] for pair in pairs), _classifier(net)], nodes, strict=True):
        layer.weight.data = torch.tensor(weights[node.input[1]])
        layer.bias.data = torch.tensor(weights[node.input[2]])
    _require_same_outputs(bench, net.eval())
    return net


def _require_same_outputs(bench: Bench, net: Any) -> None:
    import torch

    some = bench.inputs[:BATCH]
    expected = open_session(bench.dense).run(None, {"input": some})[0]
    with torch.no_grad():
        found = net(torch.tensor(some)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


@cache
def _with_gradients(bench: Bench) -> Any:
    """The torch form with the gradients of the mean loss over the calibration images."""
    import torch
    from torch.nn import functional

    net = _copy(torch_form(bench))
    for at in range(0, len(bench.inputs), BATCH):
        logits = net(torch.tensor(bench.inputs[at : at + BATCH]))
        loss: Any = functional.cross_entropy(logits, logits.detach().argmax(dim=1), reduction="sum")
        (loss / len(bench.inputs)).backward()
    return net


def _macs(net: Any) -> int:
    """MACs for one image, for the search only: the result is counted in its ONNX form."""
    side, found = SIDE, _classifier(net).weight.numel()
    for layer in _convolutions(net):
        side //= layer.stride[0]
        found += layer.weight.numel() * side**2
    return int(found)


def _convolutions(net: Any) -> list[Any]:
    from torch import nn

    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def _classifier(net: Any) -> Any:
    from torch import nn

    return next(module for module in net.modules() if isinstance(module, nn.Linear))


def _exported(net: Any) -> onnx.ModelProto:
    from models.exporting import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(net, path, input_shape=(1, 3, SIDE, SIDE), output_name="logits")
        return onnx.load(path)
