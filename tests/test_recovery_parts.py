"""Roles, features, losses, samples in any order, augmentation, and the way back into the graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from snp_onnx import CalibrationError, PlanError
from snp_onnx.planning.training import Training
from tests.graphs import Net
from tests.topologies import CATALOGUE

torch = pytest.importorskip("torch")

from snp_onnx.recovery.augment import augmented  # noqa: E402
from snp_onnx.recovery.features import nearest, residual_sums, shared_features  # noqa: E402
from snp_onnx.recovery.losses import divergence, is_classifier, is_probability, relative_error  # noqa: E402
from snp_onnx.recovery.pool import Pool  # noqa: E402
from snp_onnx.recovery.roles import trained_names  # noqa: E402
from snp_onnx.recovery.write_back import with_weights  # noqa: E402

KINDS = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}
"""Element types by ONNX's numbers."""


def roles(net: Net) -> set[str]:
    return set(trained_names(net.model()))


class TestRoles:
    """Which constants are weights."""

    def test_layers_and_norms_are_and_running_statistics_are_not(self) -> None:
        net = Net()
        net.output(net.dense(net.Flatten(net.bn(net.conv(net.image(), 3, 4), 4)), 256, 2))
        model = net.model()
        norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
        assert trained_names(model) == {"w1", "b1", "w2", "b2", *norm.input[1:3]}

    def test_scaling_of_the_input_is_no_weight_and_a_gain_is(self) -> None:
        net = Net()
        x = net.Mul(net.image(), net.normal(1, 3, 1, 1, name="std"))
        x = net.Mul(net.conv(x, 3, 4), net.normal(4, 1, 1, name="gain"))
        net.output(net.Mul(x, net.const([0.5], "scalar")))
        assert roles(net) == {"w1", "b1", "gain"}

    def test_masks_and_biases_of_logits_are_no_weights_and_positions_are(self) -> None:
        net = Net()
        net.output_rank = 3
        x = net.linear(net.input("x", 5, 6), 6, 8)
        x = net.Add(x, net.normal(1, 5, 8, name="positions"))
        logits = net.MatMul(x, net.Transpose(net.linear(x, 8, 8), perm=[0, 2, 1]))
        logits = net.Add(logits, net.normal(1, 5, 5, name="relative"))
        mask = net.const(np.triu(np.full((5, 5), -1e9), 1), "mask")
        net.output(net.linear(net.MatMul(net.Softmax(net.Add(logits, mask), axis=-1), x), 8, 4))
        found = roles(net)
        assert "positions" in found
        assert not found & {"relative", "mask"}
        assert len(found) == 7

    def test_a_classifier_s_bias_before_its_softmax_is_a_weight(self) -> None:
        net = Net()
        net.output_rank = 2
        net.output(net.Softmax(net.linear(net.input("x", 6), 6, 4), axis=-1))
        assert roles(net) == {"w1", "b1"}

    def test_embeddings_are_weights_and_tables_of_rotations_are_not(self) -> None:
        net = Net()
        net.output_rank = 3
        ids = net.input("ids", 5, dtype=np.int64)
        x = net.linear(net.Gather(net.normal(7, 8, name="words"), ids), 8, 8)
        x = net.Mul(x, net.Gather(net.normal(7, 8, name="cosines"), ids))
        net.output(net.linear(x, 8, 4))
        assert roles(net) == {"words", "w1", "b1", "w2", "b2"}

    def test_an_embedding_that_a_norm_divides_by_its_own_size_is_a_weight(self) -> None:
        net = Net()
        net.output_rank = 3
        x = net.Gather(net.normal(7, 8, name="words"), net.input("ids", 5, dtype=np.int64))
        size = net.Sqrt(net.ReduceMean(net.Mul(x, x), axes=[-1]))
        net.output(net.linear(net.Mul(x, net.Reciprocal(size)), 8, 4))
        assert roles(net) == {"words", "w1", "b1"}

    def test_frequencies_times_positions_are_no_product_of_a_layer(self) -> None:
        net = Net()
        net.output_rank = 3
        ids = net.input("ids", 5, dtype=np.int64)
        angles = net.MatMul(net.Unsqueeze(net.Cast(ids, to=1), net.const([2])), net.normal(1, 8, name="frequencies"))
        x = net.linear(net.Gather(net.normal(7, 8, name="words"), ids), 8, 8)
        net.output(net.linear(net.Mul(x, net.Cos(angles)), 8, 4))
        assert "frequencies" not in roles(net)

    def test_tied_weights_are_one_and_a_weight_with_another_use_is_none(self) -> None:
        net = Net()
        net.output_rank = 3
        ids = net.input("ids", 5, dtype=np.int64)
        table = net.normal(7, 8, name="words")
        x = net.linear(net.Gather(table, ids), 8, 8)
        net.output(net.MatMul(x, net.Transpose(table, perm=[1, 0])))
        assert roles(net) == {"words", "w1", "b1"}
        net.output(net.Sub(x, net.Gather(table, net.const([0]))))
        assert roles(net) == {"w1", "b1"}

    def test_a_weight_that_is_an_output_stays(self) -> None:
        net = Net()
        net.output_rank = 2
        net.output(net.conv(net.image(), 3, 4))
        net.output("w1")
        assert roles(net) == {"b1"}

    def test_weights_of_constant_nodes_count(self) -> None:
        net = Net()
        x = net.conv(net.image(), 3, 4)
        net.constants_as_nodes()
        net.output(x)
        assert roles(net) == {"w1", "b1"}


class TestFeatures:
    """Residual sums."""

    def test_ends_of_blocks_are_found_and_other_sums_are_not(self) -> None:
        sums = {
            name: len(residual_sums(CATALOGUE[name].model())) for name in ("residual-identity", "option-a", "chain")
        }
        assert sums == {"residual-identity": 1, "option-a": 1, "chain": 0}
        assert len(residual_sums(CATALOGUE["residual-projection"].model())) == 1

    def test_rotations_are_no_ends_of_blocks(self) -> None:
        model = CATALOGUE["llama"].model()
        (found,) = {len(residual_sums(model))}
        assert found == 2  # attention and the gated layers of the one block

    def test_only_what_both_have_counts_and_outputs_are_left_to_the_outputs(self) -> None:
        dense = CATALOGUE["residual-identity"].model()
        assert shared_features(dense, dense) == residual_sums(dense)
        assert shared_features(dense, CATALOGUE["chain"].model()) == ()
        net = Net()
        stem = net.conv_relu(net.image(), 3, 8)
        net.output(net.Add(net.conv(stem, 8, 8), stem))
        assert len(residual_sums(net.model())) == 1
        assert shared_features(net.model(), net.model()) == ()


class TestLosses:
    """The equations, against numpy."""

    def test_relative_error(self) -> None:
        a, b = (np.random.default_rng(seed).standard_normal((3, 4, 2)) for seed in (0, 1))
        found = float(relative_error(torch.tensor(a), torch.tensor(b)))
        assert found == pytest.approx(np.square(a - b).sum() / np.square(b).sum(), rel=1e-5)

    @pytest.mark.parametrize("flat", [False, True])
    def test_padded_positions_do_not_count(self, flat: bool) -> None:
        a, b = (np.random.default_rng(seed).standard_normal((2, 4, 3)) for seed in (0, 1))
        real = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
        a[1, 2:] = 1e6
        wanted = np.square(a - b)[real == 1].sum() / np.square(b)[real == 1].sum()
        shaped = [torch.tensor(x.reshape(-1, 3) if flat else x) for x in (a, b)]
        assert float(relative_error(*shaped, torch.tensor(real != 0))) == pytest.approx(wanted, rel=1e-5)

    def test_divergence(self) -> None:
        a, b = (np.random.default_rng(seed).standard_normal((5, 4)) for seed in (0, 1))
        p, q = (np.exp(x / 3) / np.exp(x / 3).sum(1, keepdims=True) for x in (b, a))
        wanted = 9 * (p * np.log(p / q)).sum(1).mean()
        found = divergence(torch.tensor(a), torch.tensor(b), 3.0, False)
        assert float(found) == pytest.approx(wanted, rel=1e-5)
        same = divergence(torch.tensor(q), torch.tensor(p), 1.0, True)
        assert float(same) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)

    def test_classifiers_are_told_from_embeddings(self) -> None:
        scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        unit = scores / scores.norm(dim=1, keepdim=True)
        assert is_classifier(scores)
        assert is_classifier(torch.softmax(scores, 1))
        assert is_probability(torch.softmax(scores, 1))
        assert not is_probability(scores)
        assert not any(is_classifier(x) for x in (unit, scores[:, :1], scores[None]))


class TestPool:
    """Samples in any order."""

    def feeds(self, sizes: tuple[int, ...] = (4, 4, 2)) -> list[dict[str, np.ndarray]]:
        starts = np.cumsum([0, *sizes])
        return [{"x": np.arange(s, s + n, dtype=np.float32)[:, None]} for s, n in zip(starts, sizes, strict=False)]

    def seen(self, pool: Pool, batch: int, number: int = 0) -> list[list[float]]:
        steps = pool.epoch(batch, 0, number)
        return [[float(v) for run in step for v in pool.rows(*run).feed["x"].ravel()] for step in steps]

    def test_an_epoch_has_every_sample_once_and_labels_follow(self) -> None:
        with Pool(self.feeds(), np.arange(10) * 10) as pool:
            assert sorted([value for batch in self.seen(pool, 5) for value in batch]) == list(range(10))
            for (run,) in pool.epoch(5, 0, 0):
                rows = pool.rows(*run)
                np.testing.assert_array_equal(rows.labels, 10 * rows.feed["x"].ravel())

    def test_the_order_is_drawn_from_seed_and_epoch(self) -> None:
        with Pool(self.feeds(), None) as pool:
            assert self.seen(pool, 5) == self.seen(pool, 5) != self.seen(pool, 5, number=1)

    def test_a_small_rest_is_left_out(self) -> None:
        with Pool(self.feeds((9,)), None) as pool:
            assert [len(batch) for batch in self.seen(pool, 8)] == [8]
            assert sorted(map(len, self.seen(pool, 6))) == [3, 6]

    def test_a_fixed_batch_is_run_several_times_a_step(self) -> None:
        with Pool(self.feeds((2, 2, 2, 2)), None, fixed=2) as pool:
            steps = pool.epoch(4, 0, 0)
            assert [[len(rows) for _, rows in step] for step in steps] == [[2, 2], [2, 2]]

    def test_feeds_without_a_batch_axis_are_samples(self) -> None:
        with Pool(self.feeds((1, 1, 1)), None, whole=True) as pool:
            assert sorted(map(len, self.seen(pool, 2))) == [1, 2]

    def test_shapes_are_not_mixed_in_a_batch(self) -> None:
        feeds = [{"x": np.full((3, width), width, np.float32)} for width in (2, 5, 2)]
        with Pool(feeds, None) as pool:
            shapes = sorted(pool.rows(*run).feed["x"].shape for step in pool.epoch(4, 0, 0) for run in step)
            assert shapes == [(2, 2), (3, 5), (4, 2)]

    def test_what_does_not_fit_in_memory_goes_to_files(self) -> None:
        with Pool(self.feeds(), None, in_memory=20) as pool:
            assert any(isinstance(part["x"].base, np.memmap) or isinstance(part["x"], np.memmap)
                       for part in pool._buckets[0]._parts)  # fmt: skip
            assert sorted([value for batch in self.seen(pool, 5) for value in batch]) == list(range(10))

    def test_no_samples_is_an_error(self) -> None:
        with pytest.raises(CalibrationError, match="no samples"):
            Pool([], None)


class TestAugment:
    """The same draw gives the same images; each way does what its name says."""

    def images(self, dtype: object = np.float32) -> dict[str, torch.Tensor]:
        values = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
        return {"x": torch.from_numpy(values), "ids": torch.arange(6)}

    def drawn(self, *ways: str) -> dict[str, torch.Tensor]:
        return augmented(self.images(), Training(augment=ways).augment, np.random.default_rng(3))  # type: ignore[arg-type]

    def test_nothing_is_done_unless_asked(self) -> None:
        assert torch.equal(self.drawn()["x"], self.images()["x"])

    @pytest.mark.parametrize("way", ["flip", "crop", "mix"])
    def test_draws_are_repeatable_and_change_images_only(self, way: str) -> None:
        one, two = self.drawn(way), self.drawn(way)
        assert torch.equal(one["x"], two["x"])
        assert not torch.equal(one["x"], self.images()["x"])
        assert torch.equal(one["ids"], self.images()["ids"])

    def test_flips_turn_some_rows(self) -> None:
        before, after = self.images()["x"], self.drawn("flip")["x"]
        turned = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(after, before, strict=True)]
        same = [bool(torch.equal(a, b)) for a, b in zip(after, before, strict=True)]
        assert [t ^ s for t, s in zip(turned, same, strict=True)] == [True] * 6
        assert any(turned)

    def test_crops_are_windows_of_the_padded_image(self) -> None:
        before, after = self.images()["x"], self.drawn("crop")["x"]
        padded = torch.nn.functional.pad(before, [2, 2, 2, 2])
        for row in range(6):
            windows = [padded[row, :, t : t + 16, s : s + 16] for t in range(5) for s in range(5)]
            assert any(torch.equal(after[row], window) for window in windows)

    def test_mixtures_lie_between_two_images(self) -> None:
        before, after = self.images()["x"], self.drawn("mix")["x"]
        lowest, highest = before.amin(0), before.amax(0)
        assert bool(((after >= lowest - 1e-5) & (after <= highest + 1e-5)).all())

    def test_a_model_without_images_is_told(self) -> None:
        with pytest.raises(PlanError, match="--augment is for images"):
            augmented({"x": torch.ones(2, 3)}, Training(augment=("flip",)).augment, np.random.default_rng(0))  # type: ignore[arg-type]


class TestWriteBack:
    """Weights change, everything else stays."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("as_nodes", [False, True])
    def test_only_values_change_and_the_element_type_stays(self, kind: str, as_nodes: bool) -> None:
        net = Net()
        net.output(net.conv(net.image(), 3, 4))
        for tensor in net.initialisers:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(KINDS[kind])
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
            tensor.doc_string = "kept"
        if as_nodes:
            net.constants_as_nodes()
        model = net.model()
        before = model.SerializeToString()
        found = with_weights(model, {"w1": np.full((4, 3, 3, 3), 0.1, np.float32)})
        assert model.SerializeToString() == before
        tensors = [n.attribute[0].t for n in found.graph.node[:2]] if as_nodes else list(found.graph.initializer)
        assert [t.doc_string for t in tensors] == ["kept", "kept"]
        values = numpy_helper.to_array(tensors[0])
        np.testing.assert_allclose(values.astype(np.float64), 0.1, rtol=1e-2)
        tensors[0].CopyFrom(model.graph.node[0].attribute[0].t if as_nodes else model.graph.initializer[0])
        assert found.SerializeToString() == before


def test_a_sum_before_a_gap_aims_behind_it() -> None:
    """The own dense sum, unless a later one is clearly nearer; shapes must agree, earlier ones don't count."""
    rng = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(4, 3, generator=rng) for _ in range(3))
    wanted = {"a": a, "gone": b, "c": c, "other": torch.zeros(4, 2)}
    every = ("a", "gone", "c", "other")
    near = {"a": b + 0.01 * a, "c": c, "other": torch.zeros(4, 3)}
    assert nearest(("a", "c", "other"), every, near, wanted, None) == {"a": "gone", "c": "c"}
    between = {"a": a + 0.4 * (b - a), "c": a}
    assert nearest(("a", "c"), every, between, wanted, None) == {"a": "a", "c": "c"}
