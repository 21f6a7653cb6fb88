"""The catalogue: every topology by name, what must be cut in it, and what must stay and why.

`groups` are the expected groups and their widths, so that a topology which is silently declined fails; `barriers` the
reasons, apart from graph inputs and outputs, for which a producer's units stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx

from tests import topologies_attention as attention
from tests import topologies_conv as conv
from tests import topologies_fused as fused
from tests import topologies_layout as layout
from tests import topologies_merged as merged
from tests import topologies_places as places
from tests import topologies_weights as weights
from tests.graphs import Batch, Net

BOTH: tuple[Batch, ...] = (2, "N")
STATIC: tuple[Batch, ...] = (2,)
DYNAMIC: tuple[Batch, ...] = ("N",)


@dataclass(frozen=True, slots=True)
class Topology:
    """A graph function and the expected outcome of tracing it."""

    draw: Callable[[Net], None]
    groups: Mapping[str, int] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    barriers: tuple[str, ...] = ()
    opset: int = 17
    batches: tuple[Batch, ...] = BOTH
    ir: int = 0
    dtype: str = "float32"
    is_deprecated: bool = False
    """Whether the full checker refuses the graph as it is, because it uses a withdrawn operator."""

    def model(self, batch: Batch = "N", opset: int = 0, has_dynamic_sides: bool = False) -> onnx.ModelProto:
        net = Net(opset or self.opset, batch, np.dtype(self.dtype), ir=self.ir)
        net.has_dynamic_sides = has_dynamic_sides
        self.draw(net)
        return net.model()


CATALOGUE: Mapping[str, Topology] = MappingProxyType(
    {
        "chain": Topology(conv.chain, {"w1:0": 8, "w2:0": 6}),
        "conv-bn-relu": Topology(conv.conv_bn_relu, {"w1:0": 8, "w2:0": 6}),
        "bn-behind-transposed": Topology(conv.bn_behind_transposed, {"w1:0": 4, "w2:1": 3}),
        "preactivation": Topology(conv.preactivation, {"w1:0": 8, "w2:0": 6}),
        "residual-identity": Topology(conv.residual_identity, {"w1:0": 8, "w2:0": 6}),
        "residual-projection": Topology(conv.residual_projection, {"w1:0": 8, "w2:0": 6, "w3:0": 12}),
        "option-a": Topology(conv.option_a, {"w1:0": 8, "w2:0": 6, "w3:0": 8}),
        "option-a-script": Topology(conv.option_a_script, {"w1:0": 8, "w2:0": 6, "w3:0": 8}),
        "two-heads": Topology(conv.two_heads, {"w1:0": 8}),
        "concat": Topology(conv.concat, {"w1:0": 6, "w2:0": 4}),
        "concat-with-input": Topology(conv.concat_with_input, {"w1:0": 6}),
        "dense-net": Topology(conv.dense_net, {"w1:0": 6, "w2:0": 4, "w3:0": 4}),
        "split": Topology(conv.split, {"w1:0": 4, "w1:0/2": 6, "w2:0": 5}),
        "split-equally": Topology(conv.split_equally, {"w1:0": 4, "w1:0/2": 4}, opset=18),
        "split-to-sequence": Topology(conv.split_to_sequence, {"w1:0": 4, "w1:0/2": 4, "w2:0": 6}),
        "split-gate": Topology(conv.split_gate, {"w1:0": 4}),
        "slice-channels": Topology(conv.slice_channels, {"w1:0": 4, "w1:0/2": 6}),
        "slice-overlapping": Topology(conv.slice_overlapping, {"w1:0": 3, "w1:0/2": 5}),
        "gather-channels": Topology(conv.gather_channels, {"w1:0": 3, "w1:0/2": 2}),
        "gather-one-channel": Topology(conv.gather_one_channel, {"w1:0": 5}, barriers=("a single position is picked",)),
        "slice-one-channel": Topology(conv.slice_one_channel, {"w1:0": 5}, barriers=("the only position of its axis",)),
        "split-one-channel": Topology(conv.split_one_channel, {"w1:0": 5}, barriers=("the only position of its axis",)),
        "gather-repeatedly": Topology(conv.gather_repeatedly, {"w1:0": 4}),
        "shuffle-between-groups": Topology(conv.shuffle_between_groups, {"w1:0": 4, "w3:0": 4, "w4:0": 6}),
        "shuffle-net": Topology(conv.shuffle_net, {"w1:0": 4, "w2:0": 2, "w5:0": 2}),
        "shuffle-net-strided": Topology(conv.shuffle_net_strided, {"w1:0": 3, "w2:0": 2, "w4:0": 5}),
        "grouped-residual": Topology(conv.grouped_residual, {"w1:0": 4, "w2:0": 5}),
        "grouped-at-the-ends": Topology(conv.grouped_at_the_ends, {"w1:0": 6}),
        "grouped-in-two": Topology(conv.grouped_in_two, {"w1:0": 4, "w2:0": 6, "w3:0": 3}),
        "transposed-in-two": Topology(conv.transposed_in_two, {"w1:0": 4, "w2:1": 6}),
        "depthwise": Topology(conv.depthwise, {"w1:0": 8}),
        "depthwise-twofold": Topology(conv.depthwise_twofold, {"w1:0": 6}),
        "grouped": Topology(conv.grouped, {"w1:0": 4}),
        "shuffle-static": Topology(conv.shuffle_static, {"w1:0": 3}, batches=STATIC),
        "shuffle-plain": Topology(conv.shuffle_plain, {"w1:0": 6}),
        "shuffle-dynamic": Topology(conv.shuffle_dynamic, {"w1:0": 3}),
        "shuffle-units": Topology(conv.shuffle_units, {"w1:0": 3, "w1:0/2": 3, "w1:0/3": 6, "w2:0": 6, "w5:0": 6}),
        "transposed": Topology(conv.transposed, {"w1:0": 8, "w2:1": 6}),
        "transposed-grouped": Topology(
            conv.transposed_grouped, {"w1:0": 4}, barriers=("position inside a group of a grouped convolution",)
        ),
        "unet": Topology(conv.unet, {"w1:0": 6, "w2:0": 10, "w3:0": 8}),
        "unet-sizes": Topology(conv.unet_sizes, {"w1:0": 6, "w2:0": 10}),
        "unet-transposed": Topology(conv.unet_transposed, {"w1:0": 6, "w2:0": 10, "w3:1": 5, "w4:0": 8}),
        "se-gate": Topology(conv.se_gate, {"w1:0": 8, "w2:0": 4}),
        "se-gate-dense": Topology(conv.se_gate_dense, {"w1:0": 8, "w2:0": 4}),
        "conv-1d": Topology(conv.conv_1d, {"w1:0": 8, "w2:0": 6}),
        "conv-3d": Topology(conv.conv_3d, {"w1:0": 6}),
        "prelu": Topology(conv.prelu, {"w1:0": 8, "w2:0": 6}),
        "instance-norm": Topology(conv.instance_norm, {"w1:0": 8}),
        "group-norm": Topology(conv.group_norm, {"w1:0": 4}, opset=21),
        "group-norm-in-parts": Topology(conv.group_norm_in_parts, {"w1:0": 4}),
        "group-norm-of-one": Topology(conv.group_norm_of_one, {}, barriers=("normalised over all channels",), opset=21),
        "layer-norm": Topology(
            conv.layer_norm, {"w1:1": 8, "w3:1": 7}, barriers=("LayerNormalization works over this axis",)
        ),
        "softmax-channels": Topology(conv.softmax_channels, {"w1:0": 8}, barriers=("Softmax works over this axis",)),
        "lrn": Topology(conv.lrn, {"w1:0": 8}, barriers=("LRN works over this axis",)),
        "arg-max": Topology(conv.arg_max, {"w1:0": 8}, barriers=("ArgMax reduces this axis",)),
        "pooled-indices": Topology(
            conv.pooled_indices, {"w1:0": 8}, barriers=("the indices of this MaxPool count its channels",)
        ),
        "global-pools": Topology(conv.global_pools, {"w1:0": 8}),
        "weight-at-run-time": Topology(
            conv.weight_at_run_time, {}, barriers=("the weight of this Conv is computed at run time",), batches=STATIC
        ),
        "group-norm-by-group": Topology(conv.group_norm, {"w1:0": 4}, opset=18, is_deprecated=True),
        "pixel-shuffle": Topology(layout.pixel_shuffle, {"w1:0": 6, "w2:0": 4}),
        "pixel-shuffle-crd": Topology(layout.pixel_shuffle_crd, {"w1:0": 6, "w2:0": 4}),
        "pixel-shuffle-in-parts": Topology(layout.pixel_shuffle_in_parts, {"w1:0": 6, "w2:0": 4}),
        "space-to-depth": Topology(layout.space_to_depth, {"w1:0": 6}),
        "flatten-gemm": Topology(layout.flatten_gemm, {"w1:0": 6, "w2:0": 10}),
        "flatten-gemm-plain": Topology(layout.flatten_gemm_plain, {"w1:0": 6, "w2:1": 10}),
        "flatten-nhwc": Topology(layout.flatten_nhwc, {"w1:0": 6}),
        "flatten-copying": Topology(layout.flatten_copying, {"w1:0": 6}),
        "flatten-by-number": Topology(layout.flatten_by_number, {"w1:0": 6}),
        "flatten-computed": Topology(layout.flatten_computed, {"w1:0": 6}),
        "flatten-by-batch": Topology(layout.flatten_by_batch, {"w1:0": 6}),
        "rows-of-positions": Topology(layout.rows_of_positions, {"w1:0": 6, "w2:0": 5}),
        "matmul-bias": Topology(layout.matmul_bias, {"w1:1": 8, "w2:1": 10}),
        "matmul-left": Topology(layout.matmul_left, {"w1:1": 8, "w2:0": 7}),
        "matmul-vector": Topology(
            layout.matmul_vector,
            {},
            barriers=(
                "contracted between two activations",
                "contracted with a constant of rank 1",
            ),
        ),
        "gemm-transposed-input": Topology(layout.gemm_transposed_input, {"w1:0": 8, "w2:1": 5}, batches=STATIC),
        "gemm-bias-row": Topology(layout.gemm_bias_row, {"w1:1": 8}),
        "learned-row": Topology(layout.learned_row, {"w1:1": 8}),
        "expand-channels": Topology(layout.expand_channels, {"w1:0": 8}),
        "tile-channels": Topology(layout.tile_channels, {"w1:0": 4}),
        "unsqueezed": Topology(layout.unsqueezed, {"w1:0": 6}),
        "squeeze-everything": Topology(layout.squeeze_everything, {"w1:0": 6}, barriers=("Squeeze without axes",)),
        "mean-kept": Topology(layout.mean_kept, {"w1:0": 6}),
        "mean-dropped": Topology(layout.mean_dropped, {"w1:0": 6}),
        "sum-dropped": Topology(layout.sum_dropped, {"w1:0": 6}),
        "mean-of-channels": Topology(layout.mean_of_channels, {"w1:0": 8}, barriers=("ReduceMean reduces this axis",)),
        "pointwise": Topology(layout.pointwise, {"w1:0": 8}),
        "gelu-in-parts": Topology(layout.gelu_in_parts, {"w1:1": 8}),
        "extent-as-number": Topology(
            layout.extent_as_number, {"w1:0": 8}, barriers=("its extent is read as a number by Div",)
        ),
        "extent-as-output": Topology(layout.extent_as_output, {"w1:0": 8}, barriers=("its extent is a graph output",)),
        "one-channel": Topology(layout.one_channel, {"w1:0": 8, "w3:0": 6}),
        "slice-at-run-time": Topology(
            layout.slice_at_run_time, {"w1:0": 8}, barriers=("the bounds of this Slice are computed at run time",)
        ),
        "pad-at-run-time": Topology(
            layout.pad_at_run_time, {"w1:0": 8}, barriers=("the amounts of this Pad are computed at run time",)
        ),
        "reshape-at-run-time": Topology(
            layout.reshape_at_run_time, {"w1:0": 8}, barriers=("the shape of this Reshape is computed at run time",)
        ),
        "pad-reflecting": Topology(layout.pad_reflecting, {"w1:0": 8}),
        "pad-channels-reflecting": Topology(layout.pad_channels_reflecting, barriers=("padded in mode reflect",)),
        "gather-by-matrix": Topology(layout.gather_by_matrix, barriers=("picked with indices of rank 2",)),
        "reduce-nothing": Topology(layout.reduce_nothing, {"w1:0": 8}),
        "resize-named-axes": Topology(layout.resize_named_axes, {"w1:0": 8}, opset=18),
        "resize-at-run-time": Topology(
            layout.resize_at_run_time,
            {"w1:0": 8},
            barriers=("the sizes of this Resize are computed at run time",),
            opset=18,
        ),
        "reshape-allowing-zeros": Topology(layout.reshape_allowing_zeros, {"w1:0": 8}),
        "crop-channels": Topology(layout.crop_channels, {"w1:0": 3, "w1:0/2": 5}),
        "sliced-with-step": Topology(layout.sliced_with_step, {"w1:0": 8}, barriers=("sliced with a step",)),
        "cumulated": Topology(layout.cumulated, {"w1:0": 8}, barriers=("CumSum works over this axis",)),
        "batch-as-channels": Topology(layout.batch_as_channels, {"w1:0": 6}),
        "batch-times-width": Topology(layout.batch_times_width, {"w1:0": 6}),
        "pad-by-axes": Topology(layout.pad_by_axes, {"w1:0": 5, "w2:0": 3}, opset=18),
        "slice-by-half": Topology(layout.slice_by_half, {"w1:0": 4}),
        "split-by-half": Topology(layout.split_by_half, {"w1:0": 4, "w1:0/2": 4, "w2:0": 4}),
        "expand-script": Topology(layout.expand_script, {"w1:1": 8}),
        "scales-from-extents": Topology(
            layout.scales_from_extents, {"w1:0": 8}, barriers=("its extent is read as a number by Resize",)
        ),
        "tied-weights": Topology(weights.tied_weights, {"w2:0": 6}),
        "tied-embedding": Topology(weights.tied_embedding, {"w1:1": 8}),
        "shared-bias": Topology(weights.shared_bias, {"w1:0": 8, "w2:0": 8, "w3:0": 8}),
        "shared-shape": Topology(weights.shared_shape, {"w1:0": 3, "w1:0/2": 5, "w2:0": 3, "w2:0/2": 5}),
        "weight-as-output": Topology(weights.weight_as_output, {}),
        "weight-as-output-before-bn": Topology(weights.weight_as_output_before_bn, {}),
        "constant-nodes": Topology(weights.constant_nodes, {"w1:0": 3, "w1:0/2": 5, "w2:0": 6}),
        "behind-identity": Topology(weights.behind_identity, {"w1:0": 8, "w2:0": 6}),
        "behind-cast": Topology(weights.behind_cast, {"w8:0": 8, "w6:0": 6}),
        "behind-transpose": Topology(weights.behind_transpose, {"w1:1": 8, "w2:1": 10}),
        "behind-reshape": Topology(weights.behind_reshape, {"w1:0": 8, "w2:0": 6}),
        "dequantised": Topology(weights.dequantised, {"w8:0": 8, "w6:0": 6}),
        "dequantised-by-output": Topology(weights.dequantised_by_output, {"w8:0": 8, "w6:0": 6}),
        "dequantised-by-input": Topology(weights.dequantised_by_input, {"w8:0": 8, "w6:0": 6}),
        "fake-quantised": Topology(weights.fake_quantised, {"w1:0": 8, "w2:0": 6}),
        "weight-norm": Topology(weights.weight_norm, {"t3:0": 8, "t8:0": 6}),
        "packed-equally": Topology(weights.packed_equally, {"w1:1": 8, "t1:1": 8, "t2:1": 8}),
        "packed-by-size": Topology(weights.packed_by_size, {"w1:1": 8, "t1:1": 8}),
        "cropped-weight": Topology(weights.cropped_weight, {"w1:1": 8, "t4:1": 10}),
        "listed-initialisers": Topology(weights.listed_initialisers, {"w1:0": 8, "w2:0": 6}),
        "if-capture": Topology(weights.if_capture, {"w1:0": 8, "w3:0": 5}, barriers=("read inside a body of If",)),
        "if-captures-constant": Topology(
            weights.if_captures_constant, {"w2:0": 5}, barriers=("read inside a body of If",)
        ),
        "if-captures-extent": Topology(
            weights.if_captures_extent,
            {"w1:0": 8},
            barriers=(
                "its extent is read inside a body of If",
                "read inside a body of If",
            ),
        ),
        "loop-capture": Topology(
            weights.loop_capture,
            {"w1:0": 8, "w4:0": 5},
            barriers=(
                "no rule for operator Loop",
                "read inside a body of Loop",
            ),
        ),
        "custom-operator": Topology(
            weights.custom_operator, {"w1:0": 8, "w3:0": 5}, barriers=("no rule for operator com.microsoft::Trilu",)
        ),
        "eye-like": Topology(weights.eye_like, {"w1:0": 8, "w3:0": 5}, barriers=("EyeLike takes its shape from this",)),
        "gather-elements": Topology(places.gather_elements, {"w1:0": 6}, batches=STATIC),
        "scatter-elements": Topology(places.scatter_elements, {"w1:0": 6}, batches=STATIC),
        "gather-nd": Topology(places.gather_nd, {"w1:0": 6}),
        "scatter-nd": Topology(places.scatter_nd, {"w1:0": 6}),
        "tensor-scatter": Topology(places.tensor_scatter, {"w1:1": 8}, opset=24),
        "grid-sample": Topology(places.grid_sample, {"w1:0": 6}),
        "roi-align": Topology(places.roi_align, {"w1:0": 6}),
        "max-roi-pool": Topology(places.max_roi_pool, {"w1:0": 6}),
        "column-to-image": Topology(places.column_to_image, {"w1:0": 6}, opset=18),
        "deform-conv": Topology(
            places.deform_conv, {"w1:0": 6, "w4:0": 5}, opset=19, barriers=("offsets or mask of a DeformConv",)
        ),
        "deform-conv-grouped": Topology(
            places.deform_conv_grouped,
            {"w1:0": 3},
            opset=19,
            barriers=("offsets or mask of a DeformConv",),
        ),
        "offsets-in-groups": Topology(
            places.offsets_in_groups,
            {"w2:0": 5},
            opset=19,
            barriers=("channels in groups share the offsets of this DeformConv",),
        ),
        "reversed-in-time": Topology(places.reversed_in_time, {"w1:1": 8}, batches=STATIC),
        "cropped-to-the-centre": Topology(places.cropped_to_the_centre, {"w1:0": 6}, opset=18),
        "local-function": Topology(weights.local_function, {"w1:0": 8, "w2:0": 6}),
        "listed-initialisers-ir3": Topology(weights.listed_initialisers, {"w1:0": 8, "w2:0": 6}, opset=9, ir=3),
        "listed-initialisers-ir4": Topology(weights.listed_initialisers, {"w1:0": 8, "w2:0": 6}, opset=11, ir=4),
        "separate": Topology(attention.separate, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}),
        "separate-bare": Topology(attention.separate_bare, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}),
        "separate-computed": Topology(attention.separate_computed, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}),
        "fused": Topology(attention.fused, {"w1:1": 12, "w4:1": 10}, heads={"w2:1": 4}),
        "fused-bare": Topology(attention.fused_bare, {"w1:1": 12, "w4:1": 10}, heads={"w2:1": 4}),
        "fused-split": Topology(attention.fused_split, {"w1:1": 12, "w4:1": 10}, heads={"w2:1": 4}),
        "key-value-groups": Topology(attention.key_value_groups, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 2}),
        "merged-with-batch": Topology(attention.merged_with_batch, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}),
        "bias-of-one": Topology(attention.bias_of_one, {"w1:1": 12}, heads={"w2:1": 4}),
        "bias-of-two": Topology(attention.bias_of_two, {"w1:1": 12}, heads={"w2:1": 4, "w6:1": 4}),
        "bias-as-input": Topology(attention.bias_as_input, {"w1:1": 12}, heads={"w2:1": 4}),
        "normalised": Topology(
            attention.normalised, {"w6:1": 10}, heads={"w2:1": 4}, barriers=("LayerNormalization works over this axis",)
        ),
        "llama": Topology(attention.llama, {"w6:1": 10}, heads={"w2:1": 3}, barriers=("ReduceMean reduces this axis",)),
        "open-slice": Topology(merged.open_slice, {"w1:0": 6}),
        "slice-to-own-extent": Topology(merged.slice_to_own_extent, {"w1:0": 6}),
        "expand-to-own-extent": Topology(merged.expand_to_own_extent, {"w1:0": 6}),
        "tiled-over-pixels": Topology(merged.tiled_over_pixels, {"w1:0": 6}),
        "repeated-by-channel": Topology(merged.repeated_by_channel, {"w1:0": 6}),
        "heads-sliced": Topology(merged.heads_sliced, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-bias": Topology(merged.heads_with_bias, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-expanded-mask": Topology(merged.heads_with_expanded_mask, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-learned-bias": Topology(merged.heads_with_learned_bias, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-bias-of-two": Topology(merged.heads_with_bias_of_two, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-given-bias": Topology(merged.heads_with_given_bias, {"w1:1": 12, "w4:1": 3}, batches=DYNAMIC),
        "heads-with-given-bias-of-two": Topology(
            merged.heads_with_given_bias, {"w1:1": 12}, heads={"w2:1": 4}, batches=STATIC
        ),
        "heads-outermost": Topology(merged.heads_outermost, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-zeros": Topology(merged.heads_with_zeros, {"w1:1": 12}, heads={"w2:1": 4}),
        "heads-with-expanded-bias": Topology(merged.heads_with_expanded_bias, {"w1:1": 12, "w4:1": 3}, batches=DYNAMIC),
        "heads-split": Topology(merged.heads_split, {"w1:1": 12}, batches=DYNAMIC),
        "heads-split-of-two": Topology(merged.heads_split, {"w1:1": 12}, heads={"w2:1": 4}, batches=STATIC),
        "heads-gathered": Topology(merged.heads_gathered, {"w1:1": 12, "w4:1": 3}, batches=DYNAMIC),
        "heads-halved": Topology(merged.heads_halved, {"w1:1": 12, "w4:1": 3}, batches=DYNAMIC),
        "heads-padded": Topology(merged.heads_padded, {"w1:1": 12, "w4:1": 3}, batches=DYNAMIC),
        "layer-on-heads": Topology(merged.layer_on_heads, {"w2:1": 12}, heads={"w3:1": 4}),
        "width-from-shape": Topology(
            merged.width_from_shape, heads={"w2:1": 4}, barriers=("LayerNormalization works over this axis",)
        ),
        "gemm-matrix-bias": Topology(merged.gemm_matrix_bias, {"w1:0": 8, **{f"w{n}:1": 8 for n in range(2, 8)}}),
        "gemm-constant-left": Topology(merged.gemm_constant_left, {"w1:0": 8, **{f"w{n}:0": 8 for n in range(2, 5)}}),
        "reduced-over-tokens": Topology(merged.reduced_over_tokens, {"w1:1": 8}),
        "reduced-by-nothing": Topology(merged.reduced_by_nothing, {"w1:1": 8}, opset=18),
        "norm-over-tokens": Topology(merged.norm_over_tokens, {"w1:1": 8}),
        "bias-gelu": Topology(fused.bias_gelu, {"w1:1": 12, "w2:1": 10}),
        "gelus": Topology(fused.gelus, {"w1:1": 12, "w2:1": 10, "w3:1": 10, "w4:1": 10, "w5:1": 10}),
        "skip-norm": Topology(fused.skip_norm, {"w2:1": 10}, barriers=("SkipLayerNormalization works over this axis",)),
        "skip-norm-broadcast": Topology(
            fused.skip_norm_broadcast,
            {"w1:1": 12, "w2:1": 10},
            barriers=("SkipLayerNormalization works over this axis",),
        ),
        "skip-norm-with-sum": Topology(
            fused.skip_norm_with_sum,
            {"w2:1": 10, "w4:1": 10},
            barriers=(
                "SkipSimplifiedLayerNormalization works over this axis",
                "SimplifiedLayerNormalization works over this axis",
            ),
            is_deprecated=True,
        ),
        "embedding-norm": Topology(fused.embedding_norm, {"w1:1": 10}),
        "multi-head": Topology(fused.multi_head, {"w1:1": 12}, heads={"w2:1": 4}),
        "multi-head-biased": Topology(fused.multi_head_biased, {"w1:1": 12}, heads={"w2:1": 4}),
        "multi-head-values": Topology(fused.multi_head_values, {"w1:1": 12, "w4:1": 4}),
        "projection-values": Topology(fused.projection_values, {"w1:1": 12, "w2:1": 4}),
        "multi-head-cross": Topology(fused.multi_head_cross, {"w1:1": 12}, heads={"w2:1": 4}),
        "multi-head-cached": Topology(fused.multi_head_cached, {"w1:1": 12}),
        "projection": Topology(fused.projection, {"w1:1": 12}, heads={"w2:1": 4}),
        "projection-uneven": Topology(
            fused.projection_uneven, heads={"w2:1": 4}, barriers=("LayerNormalization works over this axis",)
        ),
        "projection-cached": Topology(fused.projection_cached, {"w1:1": 12}),
        "group-query": Topology(fused.group_query, {"w1:1": 12}, heads={"w2:1": 3}),
        "group-query-packed": Topology(fused.group_query_packed, {"w1:1": 12}, heads={"w2:1": 3}),
        "group-query-single": Topology(
            fused.group_query_single,
            {"w1:1": 12},
            heads={"w2:1": 4},
            barriers=("contracted between two activations", "keys and values have dims of one size"),
        ),
        "group-query-cached": Topology(fused.group_query_cached, {"w1:1": 12}),
        "rotated": Topology(fused.rotated, {"w1:1": 12}, heads={"w2:1": 4}),
        "rotated-half": Topology(fused.rotated_half, {"w1:1": 12}, heads={"w2:1": 4}),
        "standard-joined": Topology(fused.standard_joined, {"w1:1": 12}, heads={"w2:1": 3}, opset=23),
        "standard-apart": Topology(fused.standard_apart, {"w1:1": 12}, heads={"w2:1": 4}, opset=24),
        "standard-padded": Topology(fused.standard_padded, {"w1:1": 12}, heads={"w2:1": 4}, opset=24),
        "standard-cached": Topology(fused.standard_cached, {"w1:1": 12}, opset=23),
        "fused-matmul": Topology(fused.fused_matmul, {"w1:1": 12, "w6:0": 10}, heads={"w2:1": 4}),
        "fused-matmul-left": Topology(fused.fused_matmul_left, {"w1:1": 12, "w2:1": 10}),
        "fused-matmul-batch": Topology(
            fused.fused_matmul_batch, {"w1:1": 12}, barriers=("a FusedMatMul that moves batch axes",)
        ),
        "fused-weight": Topology(fused.fused_weight, {"w3:0": 10}, barriers=("contracted between two activations",)),
        "einsum": Topology(fused.einsum, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}),
        "einsum-heads": Topology(fused.einsum_heads, {"w1:1": 12}, heads={"w2:1": 4}),
        "einsum-other": Topology(
            fused.einsum_other, {"w3:1": 8}, barriers=("no rule for this equation of an Einsum: ...j,jk->...k",)
        ),
        "half-multi-head": Topology(fused.multi_head, {"w1:1": 12}, heads={"w2:1": 4}, dtype="float16"),
        "half-projection": Topology(fused.projection, {"w1:1": 12}, heads={"w2:1": 4}, dtype="float16"),
        "half-skip-norm": Topology(
            fused.skip_norm, {"w2:1": 10}, barriers=("SkipLayerNormalization works over this axis",), dtype="float16"
        ),
        "lstm": Topology(layout.lstm, {"w1:0": 6, "w3:0": 10}, barriers=("LSTM carries a state from step to step",)),
        "gru": Topology(layout.gru, {"w1:0": 6, "w3:0": 10}, barriers=("GRU carries a state from step to step",)),
        "rnn": Topology(layout.rnn, {"w1:0": 6, "w3:0": 10}, barriers=("RNN carries a state from step to step",)),
        "half-conv-bn-relu": Topology(conv.conv_bn_relu, {"w1:0": 8, "w2:0": 6}, dtype="float16"),
        "half-option-a": Topology(conv.option_a, {"w1:0": 8, "w2:0": 6, "w3:0": 8}, dtype="float16"),
        "half-se-gate": Topology(conv.se_gate, {"w1:0": 8, "w2:0": 4}, dtype="float16"),
        "half-flatten-gemm": Topology(layout.flatten_gemm, {"w1:0": 6, "w2:0": 10}, dtype="float16"),
        "half-separate": Topology(attention.separate, {"w1:1": 12, "w6:1": 10}, heads={"w2:1": 4}, dtype="float16"),
    }
)
