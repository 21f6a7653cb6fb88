"""Ranking of blocks: against whole networks without each block, at half of what these cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snp_onnx.calibration import ranking
from snp_onnx.calibration.boundaries import Boundaries
from snp_onnx.calibration.ranking import block_similarities, ranking_batches
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import mac_terms, total
from snp_onnx.errors import CalibrationError, ModelError, PlanError
from snp_onnx.external import has_external
from snp_onnx.passes import RemoveBlocks, prepare, rewrite
from snp_onnx.subspace import Similarity, similarity
from snp_onnx.tracing import Block, find_blocks
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.representation import Representation, find_representation
from snp_onnx.verbs.subject import load_subject, trace_at
from tests.graphs import Net, feed_for
from tests.oracles import run, traced
from tests.test_depth_blocks import exported, recipe_feed
from tests.test_large import make_everything_large
from tests.test_remove_blocks import crossed
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
CPU = Runtime(threads=1)


def chain(count: int, channels: int = 4) -> onnx.ModelProto:
    """A small stem, equal blocks, a small head."""
    net = Net(batch="N")
    x = net.conv_relu(net.image(1), 1, channels, 1)
    for _ in range(count):
        x = net.Relu(net.Add(net.conv(net.conv_relu(x, channels, channels), channels, channels), x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), channels, 3))
    return net.model()


def found_in(model: onnx.ModelProto, feed: Mapping[str, Array]) -> tuple[Flow, tuple[Block, ...]]:
    flow = Flow(model, traced(model, feed))
    return flow, find_blocks(model, flow)


def shown(model: onnx.ModelProto, tensor: str, feeds: Feeds) -> Array:
    """A tensor of a whole model, all batches."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend([onnx.ValueInfoProto(name=tensor)])
    return np.concatenate([run(copy, feed)[0] for feed in feeds])


def by_brute_force(
    model: onnx.ModelProto, blocks: Sequence[Block], tensor: str, feeds: Feeds, measure: Similarity
) -> dict[str, float]:
    dense = shown(model, tensor, feeds).astype(np.float64)
    scores = {}
    for block in blocks:
        without = rewrite(model, [RemoveBlocks((block,))]).model
        values = shown(without, tensor, feeds).astype(np.float64)
        columns = dense.shape[-1] if dense.ndim == 3 else dense[0].size
        scores[block.name] = similarity(dense.reshape(-1, columns), values.reshape(-1, columns), measure)
    return scores


def feeds_for(model: onnx.ModelProto, sizes: Sequence[int]) -> list[dict[str, Array]]:
    return [feed_for(model, size, seed) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("measure", list(Similarity))
@pytest.mark.parametrize("in_memory", [2**28, 0])
def test_scores_are_those_of_whole_networks(
    measure: Similarity, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "Boundaries", lambda: Boundaries(in_memory))
    model = chain(4)
    feeds = feeds_for(model, (5, 5, 2))
    flow, blocks = found_in(model, feeds[0])
    representation = find_representation(flow, blocks)
    heard: list[tuple[int, int]] = []
    found = block_similarities(
        model, blocks, representation, iter(feeds), CPU, measure, progress=lambda *done: heard.append(done)
    )
    wanted = by_brute_force(model, blocks, representation.tensor, feeds, measure)
    assert list(found) == [block.name for block in blocks]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(set(found.values())) == 4
    assert heard == [(done, 4) for done in (1, 2, 3, 4)]


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
@pytest.mark.parametrize("name", ["bert", "llama", "preresnet20"])
def test_scores_of_recipes(name: str, exporter: str) -> None:
    model = exported(name, exporter)
    feeds = [recipe_feed(name, rows) for rows in (4, 3)]
    flow, blocks = found_in(model, recipe_feed(name))
    representation = find_representation(flow, blocks)
    assert representation.has_positions == (name != "preresnet20")
    found = block_similarities(model, blocks, representation, feeds, CPU)
    going = [block for block in blocks if block.is_removable]
    assert found == pytest.approx(by_brute_force(model, going, representation.tensor, feeds, Similarity.CKA), abs=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_scores_in_random_networks(data: st.DataObject) -> None:
    model = crossed(data)
    feeds = feeds_for(model, (3, 2))
    flow, blocks = found_in(model, feeds[0])
    representation = find_representation(flow, blocks)
    going = [block for block in blocks if block.is_removable]
    found = block_similarities(model, blocks, representation, feeds, CPU)
    wanted = by_brute_force(model, going, representation.tensor, feeds, Similarity.CKA)
    assert list(found) == list(wanted)
    for name, score in found.items():
        assert score == pytest.approx(wanted[name], abs=1e-4) or (score == -np.inf and wanted[name] > 1 - 1e-6)


class Executed:
    """MACs of the nodes that sessions have run, batch by batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terms: Mapping[str, float]) -> None:
        self.macs, self.nodes = 0.0, 0
        open_session, run_session = ranking.open_session, ranking.run

        def opened(model: onnx.ModelProto, *given: Any, **options: Any) -> Any:
            return model, open_session(model, *given, **options)

        def ran(session: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
            model, actual = session
            self.macs += sum(terms.get(node.name, 0.0) for node in model.graph.node)
            self.nodes += len(model.graph.node)
            return run_session(actual, feed)

        monkeypatch.setattr(ranking, "open_session", opened)
        monkeypatch.setattr(ranking, "run", ran)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_ranking_costs_at_most_half_of_a_pass_for_each_block(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(count)
    feeds = feeds_for(model, (3, 3))
    flow, blocks = found_in(model, feeds[0])
    shapes = flow.trace.facts.shapes
    terms = {term.name: total([term], lambda t, a: shapes[t][a]) for term in mac_terms(model, shapes)}
    executed = Executed(monkeypatch, terms)
    found = block_similarities(model, blocks, find_representation(flow, blocks), feeds, CPU)
    assert len(found) == count
    one_pass = len(feeds) * sum(terms.values())
    assert executed.macs - one_pass <= count / 2 * one_pass  # besides the one walk that gives the dense network's own
    assert executed.macs >= one_pass * (1 + (count - 1) / 2 * 0.9)


def test_each_node_of_the_dense_network_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(3)
    feeds = feeds_for(model, (2,))
    flow, blocks = found_in(model, feeds[0])
    going = [Block(b.name, b.kind, b.input, b.output, b.nodes, b.stage, "kept") for b in blocks[:-1]] + [blocks[-1]]
    executed = Executed(monkeypatch, {})
    assert list(block_similarities(model, going, find_representation(flow, blocks), feeds, CPU)) == [blocks[-1].name]
    to_gemm = len(model.graph.node) - 1
    assert executed.nodes == to_gemm + 3  # and without the last block the Identity, the pooling, the Flatten


def test_of_a_batch_no_more_is_kept_than_lies_at_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []

    class Watched(Boundaries):
        def retain(self, names: Any) -> None:
            super().retain(names)
            most.append(len(self._tensors))

    monkeypatch.setattr(ranking, "Boundaries", Watched)
    model = chain(5)
    feeds = feeds_for(model, (2, 2))
    flow, blocks = found_in(model, feeds[0])
    block_similarities(model, blocks, find_representation(flow, blocks), feeds, CPU)
    assert max(most) == 1


def test_weights_that_lie_in_files_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(3)
    feeds = feeds_for(model, (6, 6))
    ordinary = scores_of(model, feeds)
    make_everything_large(monkeypatch)
    dense, prepared, notes = load_subject(model)
    assert has_external(prepared)
    subject = trace_at(dense, prepared, notes, {"x": (1, 1, 8, 8)}, CPU)
    blocks = find_blocks(prepared, subject.flow)
    found = block_similarities(prepared, blocks, find_representation(subject.flow, blocks), feeds, CPU)
    assert found == pytest.approx(ordinary, abs=1e-6)


def scores_of(model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    flow, blocks = found_in(model, feeds[0])
    return block_similarities(model, blocks, find_representation(flow, blocks), feeds, CPU)


@pytest.mark.parametrize("name", ["half-separate", "half-multi-head"])
def test_narrow_types(name: str) -> None:
    model = prepare(CATALOGUE[name].model("N")).model
    feeds = feeds_for(model, (6, 6))
    assert all(0 < score < 1 for score in scores_of(model, feeds).values())


# what can't be judged


def test_a_block_that_the_representation_does_not_see_ranks_last() -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 4)
    seen = net.Relu(net.Add(net.conv_relu(x, 4, 4), x))
    unseen = net.Relu(net.Add(net.conv_relu(x, 4, 4), x))
    net.output(net.conv(unseen, 4, 2), net.conv(seen, 4, 2))
    model = net.model()
    feeds = feeds_for(model, (6,))
    flow, blocks = found_in(model, feeds[0])
    representation = find_representation(flow, blocks)
    assert representation.tensor == seen
    scores = block_similarities(model, blocks, representation, feeds, CPU)
    assert np.isfinite(scores[blocks[0].name])
    assert scores[blocks[1].name] == -np.inf


def quotients(difference: bool) -> onnx.ModelProto:
    """Two blocks, and one over what the second adds; or one over zero."""
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 4)
    y = net.Add(x, net.conv(x, 4, 4))
    z = net.Add(y, net.conv(y, 4, 4))
    net.output(net.conv(net.Reciprocal(net.Sub(z if difference else y, y)), 4, 2))
    return net.model()


def test_without_which_the_representation_is_not_finite_ranks_last() -> None:
    model = quotients(difference=True)
    feeds = feeds_for(model, (6,))
    flow, blocks = found_in(model, feeds[0])
    scores = block_similarities(model, blocks, find_representation(flow, blocks), feeds, CPU)
    assert list(np.isfinite(list(scores.values()))) == [True, False]
    assert scores[blocks[1].name] == -np.inf


def test_a_representation_that_is_not_finite_is_refused() -> None:
    model = quotients(difference=False)
    feeds = feeds_for(model, (6,))
    flow, blocks = found_in(model, feeds[0])
    representation = find_representation(flow, blocks)
    with pytest.raises(CalibrationError, match=f"representation {representation.tensor} is not finite"):
        block_similarities(model, blocks, representation, feeds, CPU)


def test_few_samples_and_missing_ones_are_refused() -> None:
    model = chain(2)
    flow, blocks = found_in(model, feed_for(model, 1))
    representation = find_representation(flow, blocks)
    with pytest.raises(CalibrationError, match="at least 4 samples, there are 3; give more samples"):
        block_similarities(model, blocks, representation, feeds_for(model, (3,)), CPU, Similarity.DEBIASED_CKA)
    with pytest.raises(CalibrationError, match="no batch"):
        block_similarities(model, blocks, representation, [], CPU)
    with pytest.raises(CalibrationError, match=r"the batch lacks the input 'x': it has \['y'\]"):
        block_similarities(model, blocks, representation, [{"y": np.zeros(3)}], CPU)


def test_a_model_without_removable_blocks_has_no_scores() -> None:
    model = chain(1)
    flow, blocks = found_in(model, feed_for(model, 1))
    representation = find_representation(flow, blocks)
    kept = [Block(b.name, b.kind, b.input, b.output, b.nodes, b.stage, "kept") for b in blocks]
    assert block_similarities(model, kept, representation, feeds_for(model, (4,)), CPU) == {}


# positions and masks


def test_padding_does_not_count() -> None:
    model = exported("bert", "ts")
    flow, blocks = found_in(model, recipe_feed("bert"))
    representation = find_representation(flow, blocks)
    feed = recipe_feed("bert", 4)
    mask = next(name for name in feed if "mask" in name)
    feed[mask] = np.ones_like(feed[mask])
    feed[mask][:, 5:] = 0
    other = {name: values.copy() for name, values in feed.items()}
    ids = next(name for name in feed if "ids" in name)
    other[ids][:, 5:] = (other[ids][:, 5:] + 7) % 64
    scores = [block_similarities(model, blocks, representation, [each], CPU, mask=mask) for each in (feed, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    scores = [block_similarities(model, blocks, representation, [each], CPU) for each in (feed, other)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)


def test_very_many_positions_and_features_are_thinned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported("bert", "ts")
    flow, blocks = found_in(model, recipe_feed("bert"))
    representation = find_representation(flow, blocks)
    feeds = [recipe_feed("bert", 8)] * 2
    monkeypatch.setattr(ranking, "MOST_ROWS", 40)
    monkeypatch.setattr(ranking, "MOST_FEATURES", 20)
    thinned = block_similarities(model, blocks, representation, feeds, CPU, Similarity.COSINE)
    dense = shown(model, representation.tensor, feeds).reshape(128, 32)
    for block in blocks:
        without = rewrite(model, [RemoveBlocks((block,))]).model
        values = shown(without, representation.tensor, feeds).reshape(128, 32)
        wanted = similarity(dense[::4, ::3], values[::4, ::3], Similarity.COSINE)
        assert thinned[block.name] == pytest.approx(wanted, abs=1e-5)


# the representation


def test_the_representation_is_what_the_last_layer_reads() -> None:
    model = chain(2)
    flow, blocks = found_in(model, feed_for(model, 1))
    gemm = model.graph.node[-1]
    assert find_representation(flow, blocks) == Representation(gemm.input[0])


def test_a_last_layer_inside_a_block_leaves_the_blocks_output() -> None:
    model = exported("bert", "ts")
    flow, blocks = found_in(model, recipe_feed("bert"))
    assert find_representation(flow, blocks) == Representation(blocks[-1].output, has_positions=True)
    assert blocks[-1].kind == "layer"


@pytest.mark.parametrize(("name", "is_there"), [("t6", True), ("t9", False), ("nowhere", False), ("x", False)])
def test_a_tensor_may_be_named(name: str, is_there: bool) -> None:
    model = chain(2)
    flow, blocks = found_in(model, feed_for(model, 1))
    if is_there:
        assert find_representation(flow, blocks, blocks[0].output) == Representation(blocks[0].output)
        return
    inside = model.graph.node[blocks[0].nodes[0]].output[0]
    message = "no node of the model gives" if name != "t9" else f"would go with block {blocks[0].name}"
    with pytest.raises(PlanError, match=message):
        find_representation(flow, blocks, inside if name == "t9" else name)


def test_a_model_without_layers_has_no_representation() -> None:
    net = Net(batch="N")
    net.output(net.Relu(net.image()))
    flow, blocks = found_in(net.model(), feed_for(net.model(), 1))
    with pytest.raises(ModelError, match="name the representation"):
        find_representation(flow, blocks)


def test_whole_batches_up_to_a_number_of_samples() -> None:
    def batches() -> Iterator[dict[str, Array]]:
        for size in (4, 4, 3):
            yield {"x": np.zeros((size, 2)), "scale": np.float32(1)}
        raise AssertionError("read too far")

    assert [len(batch["x"]) for batch in ranking_batches(batches(), 9)] == [4, 4, 3]
    assert [len(batch["x"]) for batch in ranking_batches(batches(), 8)] == [4, 4]
