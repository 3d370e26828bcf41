"""What a function computes besides dense layers, counted for the vector unit by a simple formula.

The ops are cut at the dense layers, in program order. Between two of them a tensor stays on chip:
what comes from before is read once, what is needed after is written once, floats at
`Accelerator.float_bytes` per element. Every op takes ``macs / vector_macs_per_cycle + operations /
vector_lanes`` cycles beside that, as in `target.cost.vector`; moving elements about (a reshape, a
transposition) is a matter of addresses and takes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import QUANTIZE_OPS
from sparqle_tvm.target.cost.vector import NORM_OPS, SOFTMAX_OPS, VectorCost

_VIEWS = frozenset(
    f"relax.{name}"
    for name in (
        *("reshape", "permute_dims", "expand_dims", "squeeze", "flatten", "broadcast_to"),
        # What quantization does is counted with the encoding that it is for.
        *("memory_view", "stop_lift_params", "identity", "quantize"),
    )
)
_NOTHING = frozenset(
    f"relax.{name}"
    for name in ("take", "concat", "stack", "split", "strided_slice", "zeros", "ones", "full")
)
# Operations per element where it is not one. Layer norm: that of RMS norm, and a mean and a bias.
# GELU: scale, erf, add, two products. SiLU: exp, add, divide, product.
_OPERATIONS = {
    "relax.nn.softmax": SOFTMAX_OPS,
    "relax.nn.log_softmax": SOFTMAX_OPS,
    "relax.nn.rms_norm": NORM_OPS,
    "relax.nn.layer_norm": NORM_OPS + 2,
    "relax.nn.gelu": 5,
    "relax.nn.gelu_tanh": 8,
    "relax.nn.silu": 4,
}
_QUANTIZED_INPUTS = "inputs of encodings"


@dataclass(frozen=True)
class Rest:
    """What is left beside dense layers.

    Attributes
    ----------
    costs : tuple of VectorCost
        By kind of op, in the order of the first of each.
    uncounted : tuple of str
        Ops of unknown shapes, which are in no count: ``vm.builtin.x (2)``.
    """

    costs: tuple[VectorCost, ...]
    uncounted: tuple[str, ...]


@dataclass
class _Work:
    """One op: what it does, before it is known what of its tensors lies on chip."""

    kind: str
    stretch: int
    macs: int = 0
    operations: int = 0
    read_bytes: int = 0
    write_bytes: int = 0


@dataclass
class _Tensor:
    """A tensor: its size, where it is made (-1: it is there), who made it, and what reads it."""

    size_bytes: int
    stretch: int = -1
    maker: _Work | None = None
    readers: dict[int, _Work] = field(default_factory=dict)


def count_rest(func: relax.Function, sizes: Mapping[Any, int], accelerator: Accelerator) -> Rest:
    """Count what a function does besides its dense layers.

    Parameters
    ----------
    func : relax.Function
        In split-precision form.
    sizes : mapping of tirx.Var to int
        The symbolic extents of its parameters.
    accelerator : Accelerator
        The vector unit and the memory.
    """
    walk = _Walk(sizes, accelerator)
    for param in func.params:
        walk.enter(param)
    for block in func.body.blocks:
        for binding in block.bindings:
            walk.visit(binding)
    return walk.finish(func.body.body)


class _Walk:
    """The tensors and ops of a function, in program order."""

    def __init__(self, sizes: Mapping[Any, int], accelerator: Accelerator) -> None:
        self._accelerator, self._analyzer = accelerator, tvm.sym.Analyzer()
        for var, size in sizes.items():
            self._analyzer.bind(var, tvm.tirx.IntImm(str(var.ty), size))
        self._tensors: dict[Any, _Tensor] = {}
        self._names: dict[Any, Any] = {}
        self._works: list[_Work] = []
        self._stretch = 0
        self._uncounted: Counter[str] = Counter()

    def enter(self, var: relax.Var, maker: _Work | None = None) -> None:
        """A tensor that is there from now on; of several parts one after another."""
        size = self._bytes(var.ty)
        if size is not None:
            stretch = -1 if maker is None else self._stretch
            self._tensors[var] = _Tensor(size, stretch, maker)

    def visit(self, binding: relax.Binding) -> None:
        """Take a binding."""
        var, value = binding.var, getattr(binding, "value", None)
        if isinstance(value, relax.Var | relax.TupleGetItem | relax.Tuple) or (
            _name(value) in _VIEWS
        ):
            self._names[var] = value
        elif isinstance(value, relax.Call):
            self._call(var, value)
        elif isinstance(value, relax.If | relax.Function):
            self._uncounted[type(value).__name__.lower()] += 1

    def _call(self, var: relax.Var, call: relax.Call) -> None:
        op = dialect.Op.of(call)
        if isinstance(op, dialect.Encoder):
            # It is counted with its dense layers, but for the way of its input to the chip.
            self._read(_Work(_QUANTIZED_INPUTS, self._stretch), [op.x])
            self.enter(var)
        elif isinstance(op, dialect.Dense | dialect.Attention):
            self._stretch += 1
            self.enter(var)
        elif isinstance(call.ty, relax.TensorType | relax.TupleType):
            self._op(var, call)

    def _op(self, var: relax.Var, call: relax.Call) -> None:
        name = _name(call)
        given = [each for each in _flat(call.args) if isinstance(each.ty, relax.TensorType)]
        sizes = [self._elements(each.ty) for each in (var, *given)]
        made = self._elements(call.ty)
        if made is None or any(size is None for size in sizes[1:]):
            self._uncounted[name.removeprefix("relax.")] += 1
            return
        work = _Work(name.removeprefix("relax."), self._stretch)
        depth = self._depth(name, call)
        if depth:
            work.macs = made * depth
        elif name not in _NOTHING:
            most = max(made, *(size or 0 for size in sizes[1:]), 0)
            each = QUANTIZE_OPS if dialect.QuantizeHeads.of(call) else _OPERATIONS.get(name, 1)
            work.operations = each * most
        if name == "relax.take":
            # Of a table only the rows that are asked for.
            work.read_bytes += self._bytes(call.ty) or 0
            given = given[1:]
        self._read(work, given)
        self.enter(var, work)

    def _depth(self, name: str, call: relax.Call) -> int:
        """Products that an element of the result sums; 0 if it is none of products."""
        if name == "relax.matmul":
            return self._number(call.args[0].ty.shape.values[-1]) or 0
        if name.startswith("relax.nn.conv") and isinstance(call.args[1].ty, relax.TensorType):
            weight = self._elements(call.args[1].ty) or 0
            return weight // max(self._number(call.args[1].ty.shape.values[0]) or 1, 1)
        return 0

    def _read(self, work: _Work, given: list[Any]) -> None:
        self._works.append(work)
        for each in given:
            for root in self._roots(each):
                if isinstance(root, relax.Var):
                    tensor = self._tensors.get(root)
                    if tensor is not None:
                        tensor.readers.setdefault(self._stretch, work)
                else:
                    work.read_bytes += self._bytes(root.ty) or 0

    def _roots(self, expr: Any) -> Iterator[Any]:
        """What an expression is, or is a view of: variables that are made, and constants."""
        expr = self._names.get(expr, expr) if isinstance(expr, relax.Var) else expr
        if isinstance(expr, relax.TupleGetItem):
            whole = self._names.get(expr.tuple_value, expr.tuple_value)
            inner = whole.fields[expr.index] if isinstance(whole, relax.Tuple) else whole
            yield from self._roots(inner)
        elif isinstance(expr, relax.Tuple):
            for each in expr.fields:
                yield from self._roots(each)
        elif isinstance(expr, relax.Call) and _name(expr) in _VIEWS:
            yield from self._roots(expr.args[0])
        elif isinstance(expr, relax.Var) and expr in self._names:
            yield from self._roots(self._names[expr])
        elif isinstance(getattr(expr, "ty", None), relax.TensorType | relax.TupleType):
            yield expr

    def finish(self, result: relax.Expr) -> Rest:
        """All that was seen, with what has to pass the memory."""
        outputs = set(self._roots(result))
        for var, tensor in self._tensors.items():
            for stretch, work in tensor.readers.items():
                if stretch != tensor.stretch:
                    work.read_bytes += tensor.size_bytes
            later = any(stretch != tensor.stretch for stretch in tensor.readers)
            if tensor.maker is not None and (later or var in outputs):
                tensor.maker.write_bytes += tensor.size_bytes
        kinds = dict.fromkeys(work.kind for work in self._works)
        costs = (self._cost(kind, [w for w in self._works if w.kind == kind]) for kind in kinds)
        found = tuple(cost for cost in costs if cost.macs or cost.operations or cost.dram_bytes)
        left = tuple(f"{kind} ({count})" for kind, count in self._uncounted.items())
        return Rest(found, left)

    def _cost(self, kind: str, works: list[_Work]) -> VectorCost:
        machine = self._accelerator
        vector = dma = 0
        for work in works:
            cycles = work.macs / machine.vector_macs_per_cycle
            vector += math.ceil(cycles + work.operations / machine.vector_lanes)
            dma += math.ceil((work.read_bytes + work.write_bytes) / machine.dram_bytes_per_cycle)
        return VectorCost(
            label=kind.replace(".", " ").replace("_", " "),
            macs=sum(work.macs for work in works),
            operations=sum(work.operations for work in works),
            read_bytes=sum(work.read_bytes for work in works),
            write_bytes=sum(work.write_bytes for work in works),
            cache_bytes=0,
            vector_cycles=vector,
            dma_cycles=dma,
        )

    def _bytes(self, ty: Any) -> int | None:
        if isinstance(ty, relax.TupleType):
            parts = [self._bytes(each) for each in ty.fields]
            return None if None in parts else sum(part or 0 for part in parts)
        elements = self._elements(ty)
        if elements is None:
            return None
        dtype = str(ty.dtype)
        if dtype.startswith(("float", "bfloat")):
            return elements * self._accelerator.float_bytes
        return elements * (1 if dtype in ("bool", "int4", "uint4") else np.dtype(dtype).itemsize)

    def _elements(self, ty: Any) -> int | None:
        """Elements of a tensor, or of all parts; None if a size is not known."""
        if isinstance(ty, relax.TupleType):
            parts = [self._elements(each) for each in ty.fields]
            return None if None in parts else sum(part or 0 for part in parts)
        if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
            return None
        extents = [self._number(extent) for extent in ty.shape.values]
        return None if None in extents else math.prod(extent or 0 for extent in extents)

    def _number(self, extent: Any) -> int | None:
        """A size, if it follows from those of the parameters."""
        if isinstance(extent, tvm.tirx.IntImm):
            return int(extent)
        found = self._analyzer.simplify(extent)
        return int(found) if isinstance(found, tvm.tirx.IntImm) else None


def _name(expr: Any) -> str:
    """What is called: an op, or a function of the runtime by its name."""
    if not isinstance(expr, relax.Call):
        return ""
    called = expr.op
    if isinstance(called, tvm.ir.Op):
        return str(called.name)
    return str(getattr(called, "global_symbol", "function"))


def _flat(expressions: Any) -> Iterator[Any]:
    for each in expressions:
        if isinstance(each, relax.Tuple):
            yield from _flat(each.fields)
        else:
            yield each
