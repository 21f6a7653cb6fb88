"""Models whose layers stand in branches of an If: opened for the time being, pruned inside, and closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

import snp_onnx
from snp_onnx.external import bodies_of, every_tensor
from snp_onnx.passes import prepare
from snp_onnx.passes.open_branches import Gates, OpenedBranch, add_gates, close_branches, open_branch
from snp_onnx.planning.plan import Plan
from snp_onnx.tracing.op import ops_of
from tests.oracles import difference, run
from tests.test_cost import floats_in, normal, parsed

Array = npt.NDArray[Any]
Feed = dict[str, Array]
PLAIN: dict[str, Any] = {"ridge": 1e-6, "round_to": 1, "fallback": False, "latency": False, "threads": 1}


def branch_of(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return dict(bodies_of(node))[name]


def choice_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """The If of this name, however deep it stands."""
    pending = list(model.graph.node)
    while pending:
        node = pending.pop()
        if output in node.output and node.op_type == "If":
            return node
        pending.extend(inner for _, body in bodies_of(node) for inner in body.node)
    raise AssertionError(f"no If gives {output}")


def filled(model: onnx.ModelProto, **weights: Array) -> onnx.ModelProto:
    """The model with the weights that its bodies declare, which ONNX's text form can't give them."""
    pending = list(model.graph.node)
    while pending:
        for _, body in bodies_of(pending.pop()):
            wanted = [value.name for value in body.value_info if value.name in weights]
            del body.value_info[:]
            body.initializer.extend(numpy_helper.from_array(weights[name], name) for name in wanted)
            pending.extend(body.node)
    return model


def shapes_in(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in every_tensor(graph) if len(tensor.dims) > 1}


def copies(rows: int, columns: int, seed: int) -> Array:
    """A weight whose second half of outputs repeats the first: half of the units can go without a trace."""
    weight = normal(rows, columns, seed=seed)
    weight[:, columns // 2 :] = weight[:, : columns // 2]
    return weight


WHOLE = """(float[N, 16] x, int64 rate) => (float[N, 8] y) {
    fast = Constant<value = int64 {16000}>()
    is_fast = Equal(rate, fast)
    y = If(is_fast) <
        then_branch = t () => (float[N, 8] ty) <float[16, 32] a, float[32, 8] b>
            { [one] h = MatMul(x, a) [two] r = Relu(h) [three] ty = MatMul(r, b) },
        else_branch = e () => (float[N, 8] ey) <float[16, 32] a, float[32, 8] b>
            { [one] h = MatMul(x, a) [two] r = Tanh(h) [three] ey = MatMul(r, b) }
    >
}"""


def whole() -> onnx.ModelProto:
    """Everything stands in two branches that call nodes, tensors and weights alike."""
    model = parsed(WHOLE)
    for seed, (_, body) in enumerate(bodies_of(model.graph.node[-1])):
        del body.value_info[:]
        body.initializer.append(numpy_helper.from_array(copies(16, 32, seed), "a"))
        body.initializer.append(numpy_helper.from_array(normal(32, 8, seed=seed + 10), "b"))
    return model


def feeds(rates: Callable[[int], int], count: int = 96, rows: int = 1) -> list[Feed]:
    return [{"x": normal(rows, 16, seed=100 + n), "rate": np.array(rates(n))} for n in range(count)]


def at(rate: int, rows: int) -> Feed:
    return {"x": normal(rows, 16, seed=7), "rate": np.array(rate)}


# opening and closing

NESTED = """(float[N, 8] x, bool c, bool d) => (float[N, 4] y, float[N, 4] z) {
    k = Relu(x)
    y, z = If(c) <
        then_branch = t () => (float[N, 4] ty, float[N, 4] tz) <float[8, 4] w> {
            h = MatMul(k, w)
            ty = If(d) <
                then_branch = tt () => (float[N, 4] p) { p = Relu(h) },
                else_branch = te () => (float[N, 4] q) <float[8, 4] v> { h2 = MatMul(k, v) q = Add(h2, h) }
            >
            tz = Neg(ty)
        },
        else_branch = e () => (float[N, 4] ey, far) <float[8, 4] w> { h = MatMul(x, w) ey = Tanh(h) }
    >
}"""


def nested() -> onnx.ModelProto:
    model = parsed(
        NESTED.replace("=> (float[N, 4] ey, far)", "=> (float[N, 4] ey, float[N, 4] ez)").replace(
            "ey = Tanh(h) }", "ey = Tanh(h) ez = Identity(far) }"
        ),
        far=normal(1, 4),
    )
    return filled(model, w=normal(8, 4, seed=1), v=normal(8, 4, seed=2))


def opened(model: onnx.ModelProto, with_gates: bool = False) -> tuple[onnx.ModelProto, list[OpenedBranch | Gates]]:
    """The model with every branch opened, inner ones too."""
    copy, found, seen = onnx.ModelProto(), list[OpenedBranch | Gates](), set[str]()
    copy.CopyFrom(model)
    while level := [op for op in ops_of(copy) if op.type == "If" and op.outputs[0] not in seen]:
        for op in level:
            seen.add(op.outputs[0])
            found += [add_gates(copy, op.outputs[0])] if with_gates else []
            found += [open_branch(copy, op.outputs[0], place) for place, _ in bodies_of(op.node)]
    return copy, found


@pytest.mark.parametrize("make", [whole, nested])
@pytest.mark.parametrize("with_gates", [False, True])
def test_opening_and_closing_gives_the_very_same_model(make: Callable[[], onnx.ModelProto], with_gates: bool) -> None:
    """Names that branches share are told apart while they are open; outside, the open model computes the same."""
    model = make()
    open_model, record = opened(model, with_gates)
    onnx.checker.check_model(open_model, full_check=True)
    assert not any(
        node.op_type in ("MatMul", "Relu", "Tanh")
        for _, body in bodies_of(open_model.graph.node[-1])
        for node in body.node
    )
    names = [node.name for node in open_model.graph.node if node.name]
    assert len(set(names)) == len(names)
    for feed in [at(16000, 2), at(8000, 2)] if make is whole else sides():
        assert difference(run(model, feed), run(open_model, feed)) == 0.0
    closed = close_branches(open_model, record)
    assert closed.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def sides() -> Iterator[Feed]:
    for c in (True, False):
        for d in (True, False):
            yield {"x": normal(2, 8), "c": np.array(c), "d": np.array(d)}


def test_what_passes_make_of_a_branch_goes_back_into_it() -> None:
    """Prepared while it is open: Constant nodes become weights, a norm is folded; all of it ends up inside."""
    model = parsed(
        """(float[N, 4, 6, 6] x, bool c) => (float[N, 4, 6, 6] y) {
            y = If(c) <
                then_branch = t () => (float[N, 4, 6, 6] a) {
                    w = Constant<value = float[4, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>()
                    g = Constant<value = float[4] {1, 2, 3, 4}>()
                    h = Conv(x, w)
                    a = BatchNormalization(h, g, g, g, g)
                },
                else_branch = e () => (float[N, 4, 6, 6] b) { b = Neg(x) }
            >
        }"""
    )
    open_model, record = opened(model)
    ready = prepare(open_model).model
    assert [node.op_type for node in ready.graph.node] == ["Conv", "Neg", "If"]
    closed = close_branches(ready, record)
    assert [node.op_type for node in closed.graph.node] == ["If"]
    assert not closed.graph.initializer
    body = branch_of(closed.graph.node[0], "then_branch")
    assert [node.op_type for node in body.node] == ["Conv"]
    assert len(body.initializer) == 2
    onnx.checker.check_model(closed, full_check=True)
    for choice in (True, False):
        feed = {"x": normal(2, 4, 6, 6), "c": np.array(choice)}
        assert difference(run(model, feed), run(closed, feed)) < 1e-5


# pruning


def pruned(model: onnx.ModelProto | Path, samples: Any, target: float = 0.5, **options: Any) -> snp_onnx.PruneResult:
    goal = {} if "target_params" in options or "plan" in options else {"target_macs": target}
    return snp_onnx.prune(model, samples, **goal, **{**PLAIN, "preset": "fast", **options})


def assert_same(model: onnx.ModelProto, result: onnx.ModelProto, some: list[Feed], tolerance: float = 1e-4) -> None:
    onnx.checker.check_model(result, full_check=True)
    for feed in some:
        for optimised in (False, True):
            assert difference(run(model, feed), run(result, feed, optimised)) <= tolerance


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize(("rate", "taken", "other"), [(16000, "then", "else"), (8000, "else", "then")])
def test_a_model_that_stands_in_one_if_is_pruned_inside_it(preset: str, rate: int, taken: str, other: str) -> None:
    """The branch that the samples take loses its copies; the other one, and the form of the file, stay as they were."""
    model = whole()
    result = pruned(model, feeds(lambda _: rate), preset=preset)
    (before,), (after,) = ([n for n in m.graph.node if n.op_type == "If"] for m in (model, result.model))
    assert shapes_in(branch_of(after, f"{taken}_branch")) == {"a": (16, 16), "b": (16, 8)}
    kept, was = branch_of(after, f"{other}_branch"), branch_of(before, f"{other}_branch")
    assert (list(kept.node), list(kept.initializer)) == (list(was.node), list(was.initializer))
    assert [node.name for node in branch_of(after, f"{taken}_branch").node] == ["one", "two", "three"]
    assert not result.model.graph.initializer or floats_in(result.model.graph) == 3 * 16 * 8 + 32 * 24
    assert_same(model, result.model, [at(16000, 1), at(8000, 5), at(8000, 1), at(16000, 5)])
    assert result.report.dense.macs == 2 * result.report.pruned.macs == 32 * 24
    assert result.report.dense.params == floats_in(model.graph)
    assert result.report.pruned.params == floats_in(result.model.graph)
    assert result.report.pruned.bytes == result.model.ByteSize() < model.ByteSize()
    assert any(f"no sample takes its {other}_branch, which stays as it is" in note for note in result.report.notes)
    closed = [stop for stop in result.report.barriers if stop.reason == "inside a branch of If that is not taken"]
    assert [(stop.weight, stop.node) for stop in closed] == [("a", "one"), ("b", "three")]


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_both_branches_are_pruned_where_samples_take_both(preset: str) -> None:
    model = whole()
    result = pruned(model, feeds(lambda n: (16000, 8000)[n % 2]), preset=preset)
    (choice,) = (node for node in result.model.graph.node if node.op_type == "If")
    for _, body in bodies_of(choice):
        assert shapes_in(body) == {"a": (16, 16), "b": (16, 8)}
    assert choice.input[0] == "is_fast"
    assert not any(name.startswith("opened::") for node in result.model.graph.node for name in node.output)
    assert_same(model, result.model, [at(16000, 1), at(8000, 5), at(8000, 1), at(16000, 5)])


def alike(rate: int, rows: int, seed: int) -> Feed:
    """At 16000 the second half of the features repeats the first; else they have nothing to do with each other."""
    x = normal(rows, 16, seed=seed)
    if rate == 16000:
        x[:, 8:] = x[:, :8]
    return {"x": x, "rate": np.array(rate)}


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_branch_has_the_statistics_of_its_own_samples(preset: str) -> None:
    """Units of one branch are copies for the samples that take it, and for no others."""
    model = whole()
    body = branch_of(model.graph.node[-1], "then_branch")
    first = np.zeros((16, 32), np.float32)
    first[:8, :16] = first[8:, 16:] = normal(8, 16, seed=3)
    body.initializer[0].CopyFrom(numpy_helper.from_array(first, "a"))
    samples = [alike((16000, 8000)[n % 2], 1, 100 + n) for n in range(160)]
    result = pruned(model, samples, preset=preset)
    for _, inside in bodies_of(result.model.graph.node[-1]):
        assert shapes_in(inside) == {"a": (16, 16), "b": (16, 8)}
    assert_same(model, result.model, [alike(16000, 4, 1), alike(8000, 4, 2)])


SHARED = """(float[N, 16] x, int64 rate) => (float[N, 8] y) {
    fast = Constant<value = int64 {16000}>()
    is_fast = Equal(rate, fast)
    y = If(is_fast) <
        then_branch = t () => (float[N, 8] ty) { [one] h = MatMul(x, a) r = Relu(h) [two] ty = MatMul(r, b) },
        else_branch = e () => (float[N, 8] ey) { [three] g = MatMul(x, a) s = Tanh(g) [four] ey = MatMul(s, d) }
    >
}"""


def shared() -> onnx.ModelProto:
    """A weight of the main graph that both branches read, and one for each."""
    first, second, third = copies(16, 32, 0), normal(32, 8, seed=1), normal(32, 8, seed=2)
    return parsed(SHARED, a=first, b=second, d=third)


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_weight_that_both_branches_read_is_cut_where_both_are_taken(preset: str) -> None:
    model = shared()
    result = pruned(model, feeds(lambda n: (16000, 8000)[n % 2]), preset=preset)
    assert shapes_in(result.model.graph) == {"a": (16, 16), "b": (16, 8), "d": (16, 8)}
    assert {tensor.name for tensor in result.model.graph.initializer} >= {"a", "b", "d"}
    assert_same(model, result.model, [at(16000, 1), at(8000, 5), at(8000, 1), at(16000, 5)])


def test_a_weight_that_a_branch_without_samples_reads_stays_whole_and_single() -> None:
    with pytest.raises(snp_onnx.TargetError, match="read inside a branch of If that is not taken"):
        pruned(shared(), feeds(lambda _: 16000))
    found = snp_onnx.inspect(shared())
    assert [group.id for group in found.groups] == ["a:1"]  # either branch may be taken
    assert found.dense.macs == 32 * 24  # of one of them


def test_the_more_expensive_branch_counts_where_no_sample_says_which() -> None:
    model = parsed(SHARED, a=normal(16, 32), b=normal(32, 8), d=normal(32, 8))
    branch_of(model.graph.node[-1], "else_branch").node[-1].input[1] = "wide"
    model.graph.initializer.append(numpy_helper.from_array(normal(32, 8), "wide"))
    longer = helper.make_node("MatMul", ["ey0", "more"], ["ey"])
    body = branch_of(model.graph.node[-1], "else_branch")
    body.node[-1].output[0] = "ey0"
    body.node.append(longer)
    model.graph.initializer.append(numpy_helper.from_array(normal(8, 8), "more"))
    assert snp_onnx.inspect(model).dense.macs == 32 * 24 + 64
    share = pruned(model, feeds(lambda n: 8000 if n % 4 == 0 else 16000), 0.9).report.dense.macs
    assert share == 32 * 24 + 64 // 4


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("choice", [True, False])
def test_an_if_in_an_if_is_opened_too(choice: bool, preset: str) -> None:
    model = parsed(
        """(float[N, 16] x, bool c, bool d) => (float[N, 8] y) {
            y = If(c) <
                then_branch = t () => (float[N, 8] ty) {
                    h = MatMul(x, a)
                    r = If(d) <
                        then_branch = tt () => (float[N, 32] p) { p = Relu(h) },
                        else_branch = te () => (float[N, 32] q) { s = Sigmoid(h) q = Mul(s, h) }
                    >
                    ty = MatMul(r, b)
                },
                else_branch = e () => (float[N, 8] ey) { ey = MatMul(x, far) }
            >
        }""",
        a=copies(16, 32, 0),
        b=normal(32, 8, seed=1),
        far=normal(16, 8, seed=2),
    )
    samples = [
        {"x": normal(1, 16, seed=n), "c": np.array(True), "d": np.array(n % 2 == 0 or choice)} for n in range(96)
    ]
    if choice:  # of the inner If one branch reads `h`, and no sample takes it
        with pytest.raises(snp_onnx.TargetError, match="read inside a branch of If that is not taken"):
            pruned(model, samples, preset=preset)
        return
    result = pruned(model, samples, preset=preset)
    assert shapes_in(result.model.graph)["a"] == (16, 16)
    inner = choice_of(result.model, "r")
    assert [node.op_type for _, body in bodies_of(inner) for node in body.node] == ["Relu", "Sigmoid", "Mul"]
    every = [{"x": normal(3, 16), "c": np.array(c), "d": np.array(d)} for c in (True, False) for d in (True, False)]
    assert_same(model, result.model, every)


def test_branches_that_cannot_run_on_samples_of_each_other_stay_whole() -> None:
    """Rows of sixteen features go one way, rows of eight the other; the layers in front are pruned all the same."""
    model = parsed(
        """(float[N, 16] x, int64 rate) => (float[N, 8] y) {
            fast = Constant<value = int64 {16000}>()
            is_fast = Equal(rate, fast)
            h = MatMul(x, a)
            r = Relu(h)
            k = MatMul(r, b)
            begin = Constant<value = int64[1] {0}>()
            axis = Constant<value = int64[1] {1}>()
            kept = Where(is_fast, long, short)
            part = Slice(k, begin, kept, axis)
            y = If(is_fast) <
                then_branch = t () => (float[N, 8] ty) { ty = MatMul(part, c) },
                else_branch = e () => (float[N, 8] ey) { ey = MatMul(part, d) }
            >
        }""",
        a=copies(16, 32, 0),
        b=normal(32, 12, seed=1),
        c=normal(12, 8, seed=2),
        d=normal(6, 8, seed=3),
        long=np.array([12]),
        short=np.array([6]),
    )
    result = pruned(model, feeds(lambda n: (16000, 8000)[n % 2]), target_params=0.57)
    assert shapes_in(result.model.graph)["a"] == (16, 16)
    assert any("samples take both branches, and one can't be run on" in note for note in result.report.notes)
    with pytest.raises(snp_onnx.TargetError, match="prune with samples of one, and the result with samples of"):
        pruned(model, feeds(lambda n: (16000, 8000)[n % 2]), include="nothing")
    assert_same(model, result.model, [at(16000, 1), at(8000, 3)])


BARRED = """(float[N, 16] x, int64 rate) => (float[N, 8] y) {
    fast = Constant<value = int64 {16000}>()
    is_fast = Equal(rate, fast)
    y = If(is_fast) <
        then_branch = t () => (float[N, 8] ty) { h = MatMul(x, a) [sums] r = CumSum(h, one) ty = MatMul(r, b) },
        else_branch = e () => (float[N, 8] ey) { ey = MatMul(x, far) }
    >
}"""


def test_the_node_of_a_body_that_bars_is_named() -> None:
    model = parsed(BARRED, a=copies(16, 32, 0), b=normal(32, 8), far=normal(16, 8), one=np.array(1))
    with pytest.raises(snp_onnx.TargetError, match="CumSum works over this axis"):
        pruned(model, feeds(lambda _: 16000))
    stops = {stop.weight: (stop.node, stop.reason) for stop in snp_onnx.inspect(model).barriers}
    assert stops["a"] == ("sums", "CumSum works over this axis")
    looped = parsed(
        """(float[N, 8] x) => (float[N, 8] y) {
            go = Constant<value = bool {1}>()
            y = Loop(two, go, x) <body = b (int64 i, bool g, float[N, 8] h) => (bool on, float[N, 8] k) {
                on = Identity(g)
                [step] k = MatMul(h, w)
            }>
        }""",
        w=normal(8, 8),
        two=np.array(2),
    )
    (stop,) = snp_onnx.inspect(looped).barriers
    assert (stop.weight, stop.node, stop.reason) == ("w", "step", "read inside a body of Loop")


CHOICES = {
    "another branch of this If stays whole": ("{ t = MatMul(x, b) }", "{ e = Neg(x) }", True),
    "the branches of this If give different shapes": ("{ t = MatMul(x, b) }", "{ e = MatMul(x, one) }", False),
    "its extent is read inside a branch of If that is not taken": (
        "{ t = MatMul(x, b) }",
        "{ f = Cast<to = 1>(extents) e = Mul(x, f) }",
        True,
    ),
}


@pytest.mark.parametrize("reason", CHOICES)
def test_what_an_if_gives_stays_whole_where_its_branches_do_not_agree(reason: str) -> None:
    """The first branch is known to be taken, or nothing is known."""
    then, other, is_known = CHOICES[reason]
    model = parsed(
        f"""(float[N, 8] x, bool c) => (float[N, 4] y, float[N, 4] z) {{
            h = MatMul(x, a)
            extents = Shape<start = 1>(h)
            z = MatMul(h, d)
            i = If({"known" if is_known else "c"}) <
                then_branch = f () => (float[N, M] t) {then},
                else_branch = g () => (float[N, L] e) {other}
            >
            j = Mul(i, x)
            y = MatMul(j, k)
        }}""",
        a=normal(8, 8),
        b=normal(8, 8, seed=1),
        d=normal(8, 4, seed=2),
        k=normal(8, 4, seed=3),
        one=normal(8, 1),
        known=np.array(True),
    )
    found = {stop.weight: stop.reason for stop in snp_onnx.inspect(model).barriers}
    assert reason in found.values()


def test_a_norm_in_one_branch_is_not_folded_into_what_the_other_branch_reads() -> None:
    """The convolution stands outside; the branch with the norm is open, the other one is closed."""
    model = parsed(
        """(float[N, 4, 6, 6] x, bool c) => (float[N, 4, 6, 6] y) {
            h = Conv(x, w)
            y = If(c) <
                then_branch = t () => (float[N, 4, 6, 6] ty) {
                    n = BatchNormalization(h, g, g, g, g)
                    r = Conv(n, a)
                    s = Relu(r)
                    ty = Conv(s, b)
                },
                else_branch = e () => (float[N, 4, 6, 6] ey) { ey = Relu(h) }
            >
        }""",
        w=normal(4, 4, 1, 1),
        g=np.array([1, 2, 3, 4], np.float32),
        a=copies(4, 8, 1).T[:, :, None, None],
        b=normal(4, 8, 1, 1, seed=2),
    )
    samples = [{"x": normal(1, 4, 6, 6, seed=n), "c": np.array(True)} for n in range(48)]
    result = pruned(model, samples, 0.7)
    assert shapes_in(result.model.graph)["a"][0] == 4
    assert_same(model, result.model, [{"x": normal(2, 4, 6, 6), "c": np.array(c)} for c in (True, False)])


@pytest.mark.parametrize("rates", [(16000, 16000), (16000, 8000)])
def test_a_plan_opens_the_branches_that_it_was_made_with(rates: tuple[int, int], tmp_path: Path) -> None:
    """With samples that say otherwise, with those that it was made with, and without any."""
    model = shared() if rates[1] == 8000 else whole()
    samples = feeds(lambda n: rates[n % 2])
    made = pruned(model, samples)
    made.save_plan(tmp_path / "plan.json")
    again = Plan.from_json((tmp_path / "plan.json").read_text())
    assert again == made.plan
    both = ("then_branch", "else_branch")
    assert [decision.opened for decision in again.branches] == [both if rates[1] == 8000 else both[:1]]
    shapes = shapes_in(made.model.graph)
    for source in (None, samples, feeds(lambda _: 16000)):
        found = pruned(model, source, plan=tmp_path / "plan.json")
        assert shapes_in(found.model.graph) == shapes
        is_seen = source is None or source is samples or rates[1] == 16000
        assert_same(model, found.model, [at(16000, 2), *([at(8000, 2)] if is_seen else [])])
        lost = [warning for warning in found.report.warnings if "no calibration sample comes to it" in warning]
        assert lost == ([] if is_seen else ["d: cut without folding: no calibration sample comes to it"])


def test_a_model_without_an_if_has_nothing_to_open_in_its_plan() -> None:
    model = parsed(
        "(float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, a) y = MatMul(h, b) }", a=normal(8, 8), b=normal(8, 4)
    )
    plan = pruned(model, {"x": normal(64, 8)}, 0.8).plan
    assert plan.branches == ()
    assert "branches" not in plan.to_json()


@pytest.mark.parametrize("make", [whole, shared])
def test_weights_of_a_bodied_model_may_lie_in_a_file(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    model, path = make(), tmp_path / "model.onnx"
    onnx.save(
        make(), path, save_as_external_data=True, location="weights.data", size_threshold=0, convert_attribute=True
    )
    result = pruned(path, feeds(lambda n: (16000, 8000)[n % 2]))
    result.save(tmp_path / "small.onnx", save_as_external_data=True)
    small = onnx.load(tmp_path / "small.onnx")
    assert sorted(shapes_in(small.graph).items()) == sorted(
        shapes_in(pruned(model, feeds(lambda n: (16000, 8000)[n % 2])).model.graph).items()
    )
    assert floats_in(small.graph) < floats_in(model.graph)
    assert_same(model, small, [at(16000, 2), at(8000, 3)])
    files = [file for file in tmp_path.iterdir() if file.name.startswith("small")]
    assert sum(file.stat().st_size for file in files) < path.stat().st_size + (tmp_path / "weights.data").stat().st_size


@pytest.mark.parametrize("make", [whole, shared])
def test_no_result_is_larger_than_its_model(make: Callable[[], onnx.ModelProto]) -> None:
    """With nothing to gain but a unit or two, and a target in bytes met to the byte."""
    model = make()
    for target in (0.97, 0.7):
        result = snp_onnx.prune(
            model, feeds(lambda n: (16000, 8000)[n % 2]), target_size=target, preset="fast", **PLAIN
        )
        own = sum(entry.ByteSize() + 4 for entry in result.model.metadata_props)
        assert result.model.ByteSize() <= target * model.ByteSize()
        assert result.model.ByteSize() - own < model.ByteSize()
        assert floats_in(result.model.graph) < floats_in(model.graph)


@pytest.mark.parametrize("is_read", [True, False])
def test_a_computed_weight_is_not_copied_where_a_body_reads_what_it_is_made_of(is_read: bool) -> None:
    """A layer's weight is a direction times a norm; a branch may read the direction too."""
    model = parsed(
        f"""(float[N, 16] x, bool c) => (float[N, 8] y, float[N, 8] z) {{
            w = Mul(v, g)
            z = MatMul(x, w)
            y = If(c) <
                then_branch = t () => (float[N, 8] p) {{ p = MatMul(x, {"v" if is_read else "u"}) }},
                else_branch = e () => (float[N, 8] q) {{ q = Neg(z) }}
            >
        }}""",
        v=normal(16, 8),
        g=normal(1, 8, seed=1),
        **({} if is_read else {"u": normal(16, 8, seed=2)}),
    )
    ready = prepare(model).model
    assert any(node.op_type == "Mul" for node in ready.graph.node) == is_read
    assert floats_in(ready.graph) <= floats_in(model.graph)
