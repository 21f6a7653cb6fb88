"""Attention: which columns of which weights the products of two activations read, head by head.

Queries, keys and values reach a product from their projections through operators that only move entries, or scale all
of them alike. Whole numbers that name a projection's columns are sent along that way: where they arrive, they tell
heads and dimensions apart, however a fused weight is cut up, merged and repeated. A basis inside a head may be changed
only where every entry takes such a way, and none is read elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from snp_onnx.tracing.facts import AxisOf
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Attention, Context, Logits, Numbers, Operand, Projection
from snp_onnx.tracing.marks import Arrival, along_axis, follow_marks, line_of
from snp_onnx.tracing.tracer import Linear, Product


def find_attention(flow: Flow) -> Attention:
    """The products whose operands can change basis; nothing is changed."""
    products = {
        product.op.index: product
        for product in flow.trace.products
        if product.contracted and product.op.is_standard and product.op.type == "MatMul"
    }
    found = _Found(flow, products)
    for linear in flow.trace.linears:
        if _is_plain(flow, linear):
            found.follow(linear)
    contexts = tuple(found.contexts())
    logits = tuple(found.logits(contexts))
    sides = [*(side for part in logits for side in (part.queries, part.keys)), *(part.values for part in contexts)]
    return Attention(logits, contexts, dict(found.reasons), frozenset(found.extents(sides)))


class _Found:
    """Projections by the operand they make, and why what is no projection is none."""

    def __init__(self, flow: Flow, products: dict[int, Product]) -> None:
        self.flow, self.products = flow, products
        self.made: dict[tuple[int, int], Projection] = {}
        self.touched: set[tuple[int, int]] = set()
        self.reasons: dict[int, str] = {}
        self._lines: dict[int, dict[AxisOf, Numbers]] = {}

    def follow(self, linear: Linear) -> None:
        """Send the numbers of a projection's columns to where they are read."""
        flow = self.flow
        bias, start = flow.bias(linear)
        count = flow.shape(linear.weight)[linear.out_axis]
        numbers = along_axis(np.arange(count), linear.output_axis, flow.shape(start))
        lines: dict[AxisOf, Numbers] = {}
        arrivals = list(follow_marks(flow, start, numbers, lines))
        inside = [a for a in arrivals if a.op is not None and a.op.index in self.products]
        if not inside:
            return
        self._lines[linear.op.index] = lines
        reason = _obstacle(flow, linear, bias)
        reads = np.zeros(count, dtype=np.int64)
        for arrival in arrivals:
            reads[np.unique(arrival.numbers)] += 1
        for arrival in inside:
            assert arrival.op is not None
            why = reason
            if not why and (reads[np.unique(arrival.numbers)] > 1).any():
                others = sorted({a.op.type if a.op else "graph output" for a in arrivals if a is not arrival})
                why = f"its projection is read elsewhere too ({', '.join(others)})"
            self._enter(arrival, Projection(linear, bias, _operand(flow, arrival)), why)

    def extents(self, projections: Iterable[Projection]) -> Iterator[AxisOf]:
        """Axes on the way to an operand that hold the dimensions of one head."""
        for projection in projections:
            for axis, line in self._lines[projection.linear.op.index].items():
                if any(np.array_equal(line, row) for row in projection.columns):
                    yield axis

    def _enter(self, arrival: Arrival, projection: Projection, why: str) -> None:
        assert arrival.op is not None
        place = (arrival.op.index, arrival.place)
        self.touched.add(place)
        if not why and not projection.operand.numbers.size:
            why = "heads and dimensions of its projection can't be told apart"
        if why:
            self.reasons.setdefault(arrival.op.index, why)
        else:
            self.made[place] = projection

    def contexts(self) -> Iterator[Context]:
        """Products with one projection, whose dimensions go on to one weight."""
        for index, product in self.products.items():
            places = [place for place in (0, 1) if (index, place) in self.made]
            if len(places) != 1 or (index, 1 - places[0]) in self.touched:
                continue
            values = self.made[index, places[0]]
            if values.operand.dim_axis == product.contracted[places[0]][1]:
                continue  # a projection contracted with what is none: nothing on the other side could turn with it
            context = self._context(product, values, places[0])
            if context is not None:
                yield context

    def _context(self, product: Product, values: Projection, place: int) -> Context | None:
        flow, tensor = self.flow, product.op.outputs[0]
        shape, own = flow.shape(tensor), len(flow.shape(values.operand.tensor))
        back = None if values.operand.head_axis is None else values.operand.head_axis - own
        head_axis = _varying_axis(flow, product, back)
        dim_axis = len(shape) - 2 + place
        heads = 1 if head_axis is None else shape[head_axis]
        extent = shape[dim_axis]
        if values.operand.heads not in (1, heads) or extent != values.columns.shape[1]:
            return None
        numbers = along_axis(np.arange(extent), dim_axis, shape)
        if head_axis is not None:
            numbers = numbers + extent * along_axis(np.arange(heads), head_axis, shape)
        arrivals = list(follow_marks(flow, tensor, numbers, {}))
        linears = {linear.op.index: linear for linear in flow.trace.linears if _is_plain(flow, linear)}
        if len(arrivals) != 1 or arrivals[0].op is None or arrivals[0].op.index not in linears:
            return None
        reader = linears[arrivals[0].op.index]
        line = line_of(arrivals[0].numbers, reader.input_axis)
        if line is None or reader.input != arrivals[0].tensor or _obstacle(flow, reader, None, is_reader=True):
            return None
        if not np.array_equal(np.sort(line), np.arange(heads * extent)):
            return None
        operand = Operand(tensor, head_axis, dim_axis, np.arange(heads * extent).reshape(heads, extent))
        return Context(product, values, operand, reader, np.argsort(line).reshape(heads, extent))

    def logits(self, contexts: Sequence[Context]) -> Iterator[Logits]:
        """Products whose two projections meet in the axis that is contracted."""
        for index, product in self.products.items():
            if not {(index, 0), (index, 1)} <= self.made.keys():
                one = next((self.made[index, place] for place in (0, 1) if (index, place) in self.made), None)
                if one is not None and (one.operand.tensor, one.operand.dim_axis) in product.contracted:
                    self.reasons.setdefault(index, "more than moves and scales stands before the other operand")
                continue
            queries, keys = self.made[index, 0], self.made[index, 1]
            output = _output_behind(self.flow, product, contexts)
            sides = zip((queries, keys), product.contracted, strict=True)
            if any(side.operand.dim_axis != axis for side, (_, axis) in sides):
                self.reasons.setdefault(index, "its projections don't meet in the axis that is contracted")
            elif len({1, queries.operand.heads, keys.operand.heads}) > 2:
                self.reasons.setdefault(index, "queries and keys have different numbers of heads")
            elif output is None:
                self.reasons.setdefault(index, "no output projection was found behind it")
            else:
                yield Logits(product, queries, keys, _scale_behind(self.flow, product), output)


def _operand(flow: Flow, arrival: Arrival) -> Operand:
    """Heads and dimensions of what arrived; no numbers where they can't be told apart, as heads within a batch."""
    numbers = arrival.numbers
    varying = [axis for axis in range(numbers.ndim) if (numbers != numbers.take([0], axis)).any()]
    matrix = (numbers.ndim - 2, numbers.ndim - 1)
    dims, heads = [a for a in varying if a in matrix], [a for a in varying if a not in matrix]
    nothing = np.zeros((0, 0), dtype=np.int64)
    if len(dims) != 1 or len(heads) > 1 or any(flow.trace.facts.varies(arrival.tensor, axis) for axis in heads):
        return Operand(arrival.tensor, None, 0, nothing)
    head = heads[0] if heads else None
    place = tuple(slice(None) if axis in varying else 0 for axis in range(numbers.ndim))
    table = numbers[place].reshape(-1, numbers.shape[dims[0]])
    rows = np.unique(table, axis=0)
    apart = len(np.unique(rows)) == rows.size  # no column in two heads, or twice in one
    return Operand(arrival.tensor, head, dims[0], table if apart else nothing)


def _is_plain(flow: Flow, linear: Linear) -> bool:
    """Whether a layer is one matrix product and nothing more."""
    is_matrix = linear.op.is_standard and linear.op.type in ("MatMul", "Gemm")
    return is_matrix and linear.mixes and len(flow.shape(linear.weight)) == 2


def _obstacle(flow: Flow, linear: Linear, bias: str | None, is_reader: bool = False) -> str:
    """Why a weight can't be multiplied by a matrix; nothing where it can."""
    path = flow.weights.path(linear.weight)
    if path is None:
        return f"the weight {linear.weight} is quantised or computed"
    if any(op.type not in ("Identity", "Cast", "Transpose") for op in path.ops):
        return f"the weight {linear.weight} is reshaped before it is read"
    if not (flow.is_sole(path.root) and flow.is_sole(linear.weight)):
        return f"the weight {path.root} is shared"
    if not is_reader and linear.op.type == "Gemm" and linear.op.input(2) and bias is None:
        return f"the bias {linear.op.input(2)} is shared or scaled"
    return ""


def _varying_axis(flow: Flow, product: Product, back: int | None) -> int | None:
    """The axis of a product's output that counts heads: that of the values, or the only one the other operand has."""
    rank = len(flow.shape(product.op.outputs[0]))
    if back is not None:
        return rank + back
    lead = [axis for axis, extent in enumerate(flow.shape(product.op.outputs[0])[:-2]) if extent > 1 and axis > 0]
    return lead[0] if len(lead) == 1 else None


def _output_behind(flow: Flow, product: Product, contexts: Iterable[Context]) -> Linear | None:
    """The reader of the first context that the logits flow into."""
    by_op = {context.product.op.index: context.reader for context in contexts}
    seen: set[str] = set()
    waiting = [product.op.outputs[0]]
    while waiting:
        tensor = waiting.pop(0)
        for op in flow.readers.get(tensor, ()):
            if op.index in by_op:
                return by_op[op.index]
            fresh = [name for name in op.outputs if name and name not in seen]
            seen.update(fresh)
            waiting += fresh
    return None


def _scale_behind(flow: Flow, product: Product) -> float:
    """The constant that a product is multiplied by before anything else happens to it; 1 where there is none."""
    tensor, scale = product.op.outputs[0], 1.0
    while (op := flow.only_reader(tensor)) is not None and op.is_standard and op.type in ("Mul", "Div"):
        other = op.input(1 - op.inputs.index(tensor))
        known = flow.trace.facts.values.get(other)
        if known is None or known.size != 1 or (op.type == "Div" and op.input(0) != tensor):
            break
        factor = float(np.asarray(known, dtype=np.float64).reshape(()))
        scale = scale * factor if op.type == "Mul" else scale / factor
        tensor = op.outputs[0]
    return scale
