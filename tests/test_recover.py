"""The verb `recover`: it gets better, it is never worse, the graph stays, and a run can be repeated and resumed."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx import CalibrationError, ModelError, PlanError, RecoverResult
from snp_onnx.sources.samples import Part
from snp_onnx.verbs import recover as verb
from tests.command_line import images
from tests.graphs import Array, Net, feed_for
from tests.oracles import assert_valid
from tests.topologies import CATALOGUE

torch = pytest.importorskip("torch")

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 16, "lr": 2e-3, "threads": 1}
COUNT = 140


def residual(seed: int = 0, batch: int | str = "N") -> onnx.ModelProto:
    """A classifier of four classes with one residual block of 12 inner channels."""
    net = Net(batch=batch, seed=seed)
    stem = net.conv_relu(net.image(), 3, 6)
    x = net.Relu(net.Add(net.conv(net.conv_relu(stem, 6, 12), 12, 6), stem))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 6, 4))
    return net.model()


@cache
def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The classifier, and what is left of it after a crude pruning."""
    dense = residual()
    result = snp_onnx.prune(dense, {"x": images(40)}, target_macs=0.5, preset="fast", fold="none")
    return dense, result.model


@cache
def recovered() -> RecoverResult:
    return snp_onnx.recover(*pair(), {"x": images(COUNT)}, **QUICK)


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the values of its floating-point weights, and without what says how it was made."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in (1, 10, 11, 16):
            for name in ("raw_data", "float_data"):
                tensor.ClearField(name)
    del copy.metadata_props[:]
    return copy


class TestGettingBetter:
    """What it is for."""

    def test_loss_and_error_fall(self) -> None:
        report = recovered().report
        losses = [entry["loss"] for entry in report.history]
        assert report.changed
        assert losses[-1] < 0.7 * losses[0]
        assert report.after[0].relative_l2 < 0.7 * report.before[0].relative_l2
        assert report.after[0].cosine > report.before[0].cosine

    def test_the_figures_are_those_of_the_saved_model(self, tmp_path: Path) -> None:
        recovered().save(tmp_path / "out.onnx")
        held_back = images(COUNT)[Part.HELD_OUT.choose(np.arange(COUNT))]
        found = snp_onnx.compare(pair()[0], tmp_path / "out.onnx", {"x": held_back}).fidelity[0]
        assert found.relative_l2 == pytest.approx(recovered().report.after[0].relative_l2, rel=1e-5)

    def test_features_at_the_ends_of_blocks_are_compared(self) -> None:
        assert recovered().report.features == 1
        alone = snp_onnx.recover(*pair(), {"x": images(COUNT)}, feature_weight=0.0, **QUICK)
        assert alone.report.features == 0
        assert alone.report.history[0]["loss"] < recovered().report.history[0]["loss"]

    @pytest.mark.parametrize(
        "options", [{"optimiser": "sgd", "lr": 0.05}, {"precision": "bfloat16"}, {"kl_weight": 0.5}]
    )
    def test_other_ways_get_better_too(self, options: dict[str, Any]) -> None:
        result = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **{**QUICK, **options})
        assert result.report.after[0].relative_l2 < 0.9 * result.report.before[0].relative_l2
        assert result.proto.SerializeToString() != recovered().proto.SerializeToString()

    @pytest.mark.parametrize("name", ["llama", "multi-head", "separate", "conv-bn-relu"])
    def test_other_graphs_get_better(self, name: str) -> None:
        dense = CATALOGUE[name].model()
        feed = feed_for(dense, 300)
        pruned = snp_onnx.prune(dense, feed, target_macs=0.7, preset="fast", fold="none").model
        report = snp_onnx.recover(dense, pruned, feed, **{**QUICK, "epochs": 10}).report
        assert report.changed
        assert report.after[0].relative_l2 < 0.9 * report.before[0].relative_l2

    def test_a_graph_that_lost_a_block(self) -> None:
        net = Net(batch="N")
        x = net.conv_relu(net.image(), 3, 6)
        for _ in range(3):
            x = net.Relu(net.Add(net.conv(net.conv_relu(x, 6, 8), 8, 6), x))
        net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 6, 4))
        dense, given = net.model(), {"x": images(COUNT)}
        pruned = snp_onnx.prune(dense, given, target_macs=0.75, units=["blocks"], preset="fast").model
        assert sum(node.op_type == "Add" for node in pruned.graph.node) == 2
        report = snp_onnx.recover(dense, pruned, given, **QUICK).report
        assert report.features == 2
        assert report.after[0].relative_l2 < 0.9 * report.before[0].relative_l2

    def test_a_teacher_that_torch_cannot_run_is_run_by_the_runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from snp_onnx.recovery import teacher

        def refused(*_: object, **__: object) -> None:
            raise ModelError("no")

        monkeypatch.setattr(teacher, "GraphModule", refused)
        report = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **QUICK).report
        assert report.after[0].relative_l2 == pytest.approx(recovered().report.after[0].relative_l2, rel=0.05)


class TestNeverWorse:
    """The best state is kept, and the pruned model itself where there is none."""

    def test_a_rate_that_ruins_everything_leaves_the_model(self) -> None:
        result = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **{**QUICK, "lr": 30.0, "clip": 1e9})
        assert not result.report.changed
        assert result.report.after == result.report.before
        assert result.proto.SerializeToString() == pair()[1].SerializeToString()
        assert any("the result is the pruned model as it was" in note for note in result.report.notes)

    def test_an_exploding_loss_stops(self) -> None:
        result = snp_onnx.recover(
            *pair(), {"x": images(COUNT)}, **{**QUICK, "lr": 1e30, "optimiser": "sgd", "clip": 1e30}
        )
        assert any("the loss was not finite" in note for note in result.report.notes)
        assert not result.report.changed

    def test_patience_ends_it(self) -> None:
        options = {**QUICK, "lr": 30.0, "epochs": 9, "patience": 2}
        report = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **options).report
        assert len(report.history) == 2
        assert any("no better for 2 checks" in note for note in report.notes)

    def test_checks_are_few_in_a_long_training(self) -> None:
        options = {**QUICK, "epochs": 60, "batch_size": 128}
        report = snp_onnx.recover(*pair(), {"x": images(30)}, **options).report
        assert [entry["epoch"] for entry in report.history] == list(range(2, 61, 2))

    def test_a_time_limit_ends_it(self) -> None:
        report = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **{**QUICK, "epochs": 100_000}, time_limit=0.02).report
        assert any("stopped by the time limit" in note for note in report.notes)
        assert report.history[-1]["seconds"] < 10


class TestTheGraphStays:
    """Structure, names and types."""

    def test_only_values_of_weights_change(self) -> None:
        before, after = pair()[1], recovered().proto
        assert skeleton(after) == skeleton(before)
        changed = [name for name, values in weights(before).items() if not np.array_equal(values, weights(after)[name])]
        assert set(changed) == set(weights(before))
        assert_valid(after, {"x": images(3)})

    def test_the_models_given_are_left_alone(self) -> None:
        dense, pruned = (model.SerializeToString() for model in pair())
        snp_onnx.recover(*pair(), {"x": images(COUNT)}, **{**QUICK, "epochs": 1})
        assert [model.SerializeToString() for model in pair()] == [dense, pruned]

    def test_running_statistics_stay(self) -> None:
        net = Net(batch="N")
        net.output(net.conv(net.Relu(net.bn(net.conv(net.image(), 3, 8), 8)), 8, 4))
        dense = net.model()
        other = onnx.ModelProto()
        other.CopyFrom(dense)
        values = weights(dense)["w1"] * 0.7
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
        found = weights(snp_onnx.recover(dense, other, {"x": images(COUNT)}, **QUICK).proto)
        norm = next(node for node in dense.graph.node if node.op_type == "BatchNormalization")
        same = [np.array_equal(found[name], weights(dense)[name]) for name in norm.input[1:]]
        assert same == [False, False, True, True]

    @pytest.mark.parametrize("name", ["listed-initialisers", "listed-initialisers-ir3"])
    def test_initialisers_that_are_listed_as_inputs_stay_listed(self, name: str) -> None:
        dense = CATALOGUE[name].model()
        other = onnx.ModelProto()
        other.CopyFrom(dense)
        values = weights(dense)["w1"] * 0.7
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
        result = snp_onnx.recover(dense, other, {"x": images(COUNT)}, **QUICK)
        assert result.report.changed
        assert skeleton(result.proto) == skeleton(other)

    def test_half_precision_stays(self) -> None:
        dense = CATALOGUE["half-option-a"].model()
        feed = feed_for(dense, 60)
        pruned = snp_onnx.prune(dense, feed, target_macs=0.7, preset="fast", fold="none").model
        result = snp_onnx.recover(dense, pruned, feed, **QUICK)
        assert result.report.changed
        assert skeleton(result.proto) == skeleton(pruned)

    def test_external_data(self, tmp_path: Path) -> None:
        result = recovered()
        result.save(tmp_path / "out.onnx", save_as_external_data=True)
        assert_valid(onnx.load(tmp_path / "out.onnx"), {"x": images(3)})

    def test_weights_kept_in_files_stay_in_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from snp_onnx import external, memory

        monkeypatch.setattr(memory, "available", lambda: 0)
        monkeypatch.setattr(external, "LEAST", 1)
        result = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **QUICK)
        assert any(external.is_external(tensor) for tensor in result.proto.graph.initializer)
        result.save(tmp_path / "out.onnx")
        for name, values in weights(onnx.load(tmp_path / "out.onnx")).items():
            np.testing.assert_allclose(values, weights(recovered().proto)[name], rtol=1e-6)

    def test_head_counts_beside_the_pruned_model_go_along(self, tmp_path: Path) -> None:
        dense = CATALOGUE["llama"].model()
        feed = feed_for(dense, 60)
        pruned = tmp_path / "pruned.onnx"
        snp_onnx.prune(dense, feed, target_macs=0.6, preset="fast").save(pruned)
        snp_onnx.recover(dense, pruned, feed, **{**QUICK, "epochs": 1}).save(tmp_path / "out.onnx")
        text = (tmp_path / "pruned.onnx.config.json").read_text()
        assert (tmp_path / "out.onnx.config.json").read_text() == text


class TestRepeatable:
    """Seeds and checkpoints."""

    def test_same_seed_same_bytes_and_another_seed_others(self) -> None:
        again, other = (snp_onnx.recover(*pair(), {"x": images(COUNT)}, **QUICK, seed=seed) for seed in (0, 1))
        assert again.proto.SerializeToString() == recovered().proto.SerializeToString()
        assert other.proto.SerializeToString() != again.proto.SerializeToString()

    @pytest.mark.parametrize("after", [3, 20])
    def test_an_interrupted_training_goes_on_to_the_same_bytes(self, tmp_path: Path, after: int) -> None:
        path, steps = tmp_path / "state", 0

        def interrupt(stage: str, done: int, total: int) -> None:
            nonlocal steps
            steps += stage == "train"
            if steps > after:
                raise KeyboardInterrupt

        given: dict[str, Any] = {**QUICK, "checkpoint": path, "every": 0.0}
        with pytest.raises(KeyboardInterrupt):
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, progress=interrupt, **given)
        result = snp_onnx.recover(*pair(), {"x": images(COUNT)}, resume=True, **given)
        assert any("resumed in epoch" in note for note in result.report.notes)
        assert result.proto.SerializeToString() == recovered().proto.SerializeToString()
        assert path.exists()
        result.save(tmp_path / "out.onnx")
        assert not path.exists()

    def test_a_finished_training_that_was_not_saved_is_not_run_again(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {**QUICK, "checkpoint": tmp_path / "state"}
        snp_onnx.recover(*pair(), {"x": images(COUNT)}, **given)
        stages: list[str] = []
        result = snp_onnx.recover(
            *pair(), {"x": images(COUNT)}, resume=True, progress=lambda stage, *_: stages.append(stage), **given
        )
        assert "train" not in stages
        assert result.proto.SerializeToString() == recovered().proto.SerializeToString()

    def test_a_checkpoint_of_something_else_is_refused(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {**QUICK, "checkpoint": tmp_path / "state", "every": 0.0}
        snp_onnx.recover(*pair(), {"x": images(COUNT)}, **given)
        with pytest.raises(PlanError, match="a checkpoint is there: add --resume"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, **given)
        with pytest.raises(PlanError, match="a checkpoint of other models, samples or options"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, resume=True, **{**given, "lr": 1e-5})
        (tmp_path / "state").write_bytes(b"damaged")
        with pytest.raises(PlanError, match="not a checkpoint that can be read"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, resume=True, **given)

    def test_resuming_without_a_checkpoint_starts_and_says_so(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {**QUICK, "epochs": 1, "checkpoint": tmp_path / "state", "resume": True}
        report = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **given).report
        assert any("no checkpoint there to resume" in note for note in report.notes)


class TestLabels:
    """Used only if they are given."""

    def labelled(self) -> dict[str, Array]:
        return {"x": images(COUNT), "classes": np.arange(COUNT) % 4}

    def test_labels_that_are_not_named_change_nothing(self) -> None:
        result = snp_onnx.recover(*pair(), self.labelled(), input_array="x", **QUICK)
        assert result.proto.SerializeToString() == recovered().proto.SerializeToString()

    def test_labels_that_are_named_pull(self) -> None:
        chosen = {**QUICK, "label_array": "classes", "label_weight": 30.0, "output_weight": 0.01}
        with_labels = snp_onnx.recover(*pair(), self.labelled(), **{**chosen, "feature_weight": 0.0})
        assert with_labels.report.history[0]["loss"] > 10  # 30 ln 4 for chance
        assert with_labels.report.before[0].pruned_accuracy is not None

    def test_a_class_that_does_not_exist_is_an_error(self) -> None:
        wrong = self.labelled() | {"classes": np.arange(COUNT) % 9}
        with pytest.raises(CalibrationError, match=r"label 8 .* 4 classes"):
            snp_onnx.recover(*pair(), wrong, label_array="classes", **QUICK)

    def test_scores_as_labels_are_an_error(self) -> None:
        wrong = self.labelled() | {"classes": np.ones((COUNT, 4), np.float32)}
        with pytest.raises(CalibrationError, match="one class number a sample"):
            snp_onnx.recover(*pair(), wrong, label_array="classes", **QUICK)

    def test_mixtures_have_no_labels(self) -> None:
        with pytest.raises(PlanError, match="--augment mix leaves images without a class"):
            snp_onnx.recover(*pair(), self.labelled(), label_array="classes", augment=["mix"], **QUICK)


class TestOptions:
    """Each changes the outcome, and wrong ones are refused."""

    @pytest.mark.parametrize(
        "options",
        [
            {"augment": ["flip"]}, {"augment": ["crop"]}, {"augment": ["mix"]}, {"weight_decay": 0.5}, {"warmup": 0.5},
            {"clip": 0.01}, {"kl_weight": 0.1}, {"whiten": False}, {"output_weight": 0.0}, {"batch_size": 32},
            {"samples": 60},
        ],
        ids=str,
    )  # fmt: skip
    def test_an_option_changes_the_weights(self, options: dict[str, Any]) -> None:
        result = snp_onnx.recover(*pair(), {"x": images(COUNT)}, **{**QUICK, **options})
        assert result.report.changed
        assert result.proto.SerializeToString() != recovered().proto.SerializeToString()

    def test_the_temperature_counts(self) -> None:
        chosen = {**QUICK, "kl_weight": 0.5}
        one, two = (snp_onnx.recover(*pair(), {"x": images(COUNT)}, **chosen, temperature=t) for t in (1.0, 4.0))
        assert one.proto.SerializeToString() != two.proto.SerializeToString()

    def test_momentum_counts(self) -> None:
        chosen = {**QUICK, "optimiser": "sgd", "lr": 0.05}
        one, two = (snp_onnx.recover(*pair(), {"x": images(COUNT)}, **chosen, momentum=m) for m in (0.9, 0.0))
        assert one.proto.SerializeToString() != two.proto.SerializeToString()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "--epochs 0: give a positive number"),
            ({"lr": -1.0}, "--lr -1.0: give a positive number"),
            ({"warmup": 1.0}, "--warmup 1.0: give a number from 0 to below 1"),
            ({"kl_weight": -1.0}, "--kl-weight -1.0: give 0 or a positive number"),
            ({"optimiser": "lion"}, "--optimiser 'lion': give one of adamw, sgd"),
            ({"augment": ["turn"]}, "--augment 'turn': give one of flip, crop, mix"),
            ({"precision": "int8"}, "--precision 'int8': give one of float32, bfloat16"),
            ({"resume": True}, "--resume goes on from a checkpoint"),
            ({"device": "cuda:99"}, "--device cuda:99: torch can't use it here"),
            ({"device": "abacus"}, "--device abacus: torch can't use it here"),
            (
                {"kl_weight": 0, "output_weight": 0, "feature_weight": 0, "label_weight": 0},
                "all weights of the losses are 0",
            ),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(PlanError) as caught:
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, **options)
        assert message in str(caught.value)

    def test_misspelt_options_are_refused(self) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)}, epoch=3)

    def test_every_choice_has_an_option_on_the_command_line(self) -> None:
        from snp_onnx.cli.options import DATA, TRAINING
        from snp_onnx.planning.training import Training

        names = {option.name for option in (*DATA, *TRAINING)}
        for field in dataclasses.fields(Training):
            assert field.name in names
        defaults = {option.name: option.default for option in TRAINING}
        plain = Training()
        for name, value in defaults.items():
            assert (value or None) == (getattr(plain, name) or None), name


class TestWrongInput:
    """One sentence: what, where, what to do."""

    def test_without_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verb, "find_spec", lambda name: None if name == "torch" else importlib.util.find_spec(name))
        with pytest.raises(PlanError, match=r"recover needs torch: pip install 'snp-onnx\[torch\]'"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)})

    def test_with_a_torch_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = builtins.__import__

        def broken(name: str, *rest: Any, **named: Any) -> Any:
            if name == "torch":
                raise ImportError("libtorch is damaged")
            return inner(name, *rest, **named)

        monkeypatch.setattr(builtins, "__import__", broken)
        with pytest.raises(PlanError, match="can't be loaded: libtorch is damaged"):
            snp_onnx.recover(*pair(), {"x": images(COUNT)})

    def test_no_samples(self) -> None:
        with pytest.raises(CalibrationError, match="no calibration samples given"):
            snp_onnx.recover(*pair(), None)

    def test_models_that_do_not_belong_together(self) -> None:
        net = Net(batch="N")
        net.output(net.dense(net.Flatten(net.input("other", 3, 8, 8)), 192, 4))
        with pytest.raises(ModelError, match="different inputs"):
            snp_onnx.recover(pair()[0], net.model(), {"x": images(COUNT)}, **QUICK)

    def test_outputs_of_other_shapes(self) -> None:
        dense = residual()
        net = Net(batch="N")
        net._counts["t"] = 7
        net.output(net.dense(net.Flatten(net.image()), 192, 5))
        other = net.model()
        other.graph.node[-1].output[0] = other.graph.output[0].name = dense.graph.output[0].name
        with pytest.raises(
            ModelError, match=r"has shape \(\d+, 4\) in the dense model and \(\d+, 5\) in the pruned one"
        ):
            snp_onnx.recover(dense, other, {"x": images(COUNT)}, **QUICK)

    def test_an_operator_that_is_not_covered(self) -> None:
        model = CATALOGUE["fake-quantised"].model()
        with pytest.raises(ModelError, match="n1: rounding to integers of QuantizeLinear"):
            snp_onnx.recover(model, model, feed_for(model, 40), **QUICK)

    def test_a_model_without_weights(self) -> None:
        net = Net(batch="N")
        net.output(net.Relu(net.image()))
        with pytest.raises(ModelError, match="nothing to train"):
            snp_onnx.recover(net.model(), net.model(), {"x": images(COUNT)}, **QUICK)

    def test_noise_is_called_noise(self) -> None:
        report = snp_onnx.recover(*pair(), "random", samples=30, **{**QUICK, "epochs": 1}).report
        assert "RANDOM" in report.warnings[0]


class TestFixedBatches:
    """Models that insist on their batch, and models without one."""

    def test_a_fixed_batch_is_accumulated(self) -> None:
        dense = residual(batch=4)
        pruned = snp_onnx.prune(dense, {"x": images(40)}, target_macs=0.5, preset="fast", fold="none").model
        report = snp_onnx.recover(dense, pruned, {"x": images(COUNT)}, **QUICK).report
        assert report.after[0].relative_l2 < 0.7 * report.before[0].relative_l2

    def test_series_with_time_first_are_trained_whole(self) -> None:
        net = Net(batch="T")
        net.output_rank = 3
        t = net.Transpose(net.input("x", 1, 4), perm=[1, 2, 0])
        c = net.conv(net.conv_relu(t, 4, 16, rank=1), 16, 4, rank=1)
        net.output(net.Transpose(c, perm=[2, 0, 1]))
        dense, rng = net.model(), np.random.default_rng(0)
        series = [{"x": rng.standard_normal((12 + index % 2, 1, 4)).astype(np.float32)} for index in range(40)]
        pruned = snp_onnx.prune(dense, series, target_macs=0.6, preset="fast", fold="none").model
        report = snp_onnx.recover(dense, pruned, series, **{**QUICK, "epochs": 3}).report
        assert report.samples == 34
        assert any("each of 40 feeds is one sample, fed whole" in note for note in report.notes)
        assert report.after[0].relative_l2 < report.before[0].relative_l2

    def test_caches_that_lost_heads_are_fed_what_is_left_of_them(self) -> None:
        dense = CATALOGUE["group-query-cached"].model()
        feed = feed_for(dense, 60)
        feed |= {name: np.random.default_rng(0).standard_normal(v.shape).astype(v.dtype) for name, v in feed.items()}
        options: dict[str, Any] = {"target_macs": 0.75, "preset": "fast", "fold": "none", "caches": True}
        pruned = snp_onnx.prune(dense, feed, units=["heads"], **options).model
        shapes = [
            [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*dense.graph.input, *pruned.graph.input)
        ]
        assert shapes[: len(shapes) // 2] != shapes[len(shapes) // 2 :]
        result = snp_onnx.recover(dense, pruned, feed, **QUICK)
        assert result.report.changed
        assert skeleton(result.proto) == skeleton(pruned)
