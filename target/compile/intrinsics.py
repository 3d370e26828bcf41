"""TensorIntrins of the accelerator: what a block of the schedule becomes.

An intrinsic has a description, the loop nest over one tile that `Schedule.tensorize` looks for, and
an implementation, a call ``sparqle.<name>(tile pointers.., tile extents..)`` that
`target.compile.codegen` turns into instructions. Both are generated per tile shape and kind of
op, and registered with TVM once, under a name that says both.

=============  ======================================================================
``ld_lsb``     low digits of an activation tile
``ld_msb``     high digits: bitmap and compressed stream
``ld_act``     activations of scheme ``dense``, both digits
``ld_sums``    sums of the activations over the weight groups of a K chunk
``ld_row``     activation scales
``ld_zero``    zero points of rows
``ld_wgt``     weights; codegen splits them into slices of `digit_bits` bits
``ld_scale``   group scales of a K chunk
``ld_min``     group minima of a K chunk
``ld_channel`` scale per channel
``ld_offset``  constant per channel: a bias
``ld_wsum``    sum of a channel's weights
``ld_bias``    float bias of a channel
``zero``       clear accumulators
``mma_lsb``    add low digits times weights, per group times its scale
``mma_msb``    the same for high digits, times 2^k
``mma_min``    add group sums times minima
``drain``      sum of the passes -> output: offset, scales, conversion; if encoded, quantization
``store``      write an output tile; codegen cuts encoded outputs into planes
=============  ======================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.tir import DRAIN_INDEX, PASSES, arrays_of, drained, product
from sparqle_tvm.target.op import DenseOp

PREFIX = "sparqle."
"""Of the names of intrinsics and of the functions that their implementations call."""

SCOPES = {
    "lsb": "global.sparqle_act",
    "act": "global.sparqle_act",
    "msb": "global.sparqle_msb",
    "group_sums": "global.sparqle_row",
    "act_scale": "global.sparqle_row",
    "zero": "global.sparqle_row",
    "w": "global.sparqle_wgt",
    "w_scale": "global.sparqle_par",
    "w_min": "global.sparqle_par",
    "offset": "global.sparqle_par",
    "w_sum": "global.sparqle_par",
    "bias": "global.sparqle_par",
    "acc": "global.sparqle_acc",
}
"""Memory scope of the on-chip copy of each array of `tir.split_dense_primfunc`."""

LOADS = {
    "lsb": "ld_lsb",
    "msb": "ld_msb",
    "act": "ld_act",
    "group_sums": "ld_sums",
    "act_scale": "ld_row",
    "zero": "ld_zero",
    "w": "ld_wgt",
    "w_scale": "ld_scale",
    "w_min": "ld_min",
    "offset": "ld_offset",
    "w_sum": "ld_wsum",
    "bias": "ld_bias",
}
"""Intrinsic that loads each array; a `w_scale` per channel is loaded by ``ld_channel``."""


@dataclass(frozen=True)
class Operand:
    """A tile that an intrinsic takes.

    Attributes
    ----------
    name : str
        Of the argument; the written tile comes first.
    shape : tuple of int
        Extents.
    dtype, scope : str
        Of the buffer; scope ``global`` is DRAM.
    access : {"r", "w", "rw"}
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scope: str
    access: str = "r"


Tile = Mapping[str, int]
"""Extents of a tile by the axes of `tir.arrays_of`."""


@dataclass(frozen=True)
class _Definition:
    """Operands of an intrinsic and the value that it computes for each point of its loops."""

    operands: tuple[Operand, ...]
    kinds: str
    extents: tuple[int, ...]
    value: Callable[..., Any]


def get_intrinsic(name: str, op: DenseOp, tile: tuple[int, int, int]) -> str:
    """Register an intrinsic unless that is done, and return its name for `Schedule.tensorize`.

    Parameters
    ----------
    name : str
        One of those above, without prefix.
    op : DenseOp
        The op: it determines dtypes and which parameters there are.
    tile : tuple of int
        Extents (m, n, k) of a whole tile; k is a multiple of the group size.

    Raises
    ------
    CompileError
        If there is no such intrinsic, or the tile splits a weight group.
    """
    full_name = f"{PREFIX}{name}_{'x'.join(map(str, tile))}_{_variant(op)}"
    if TensorIntrin.get(full_name, allow_missing=True) is None:
        definition = _define(name, op, tile)
        description = _build(definition, None)
        implementation = _build(definition, PREFIX + name)
        TensorIntrin.register(full_name, description, implementation)
    return full_name


def _variant(op: DenseOp) -> str:
    """What of the op the intrinsics depend on."""
    limits = ""
    if op.output == "encoded":
        limits = f"_{op.out_dtype}_{op.out_zero}_{op.out_low}_{op.out_high}"
        limits += f"_mid_{op.mid_zero}_{op.mid_low}_{op.mid_high}" if op.has_mid else ""
    flags = ("_min" if op.has_min else "") + ("_offset" if op.has_offset else "")
    flags += "_shift" if op.adds_shift else ""
    flags += "_bias" if op.has_bias else ""
    digits = f"{op.scheme}{op.digit_bits}_{op.act_dtype}_{op.window}"
    return f"{digits}_g{op.group_size}_s{op.scale_bytes}{flags}_{op.output}{limits}"


def _define(name: str, op: DenseOp, extents: tuple[int, int, int]) -> _Definition:
    if op.group_size and extents[2] % op.group_size:
        raise CompileError(
            f"a tile of {extents[2]} K columns splits groups of {op.group_size} weights; "
            "choose a multiple"
        )
    m, n, k = extents
    tile = {"m": m, "n": n, "k": k, "g": k // op.group_size if op.group_size else 0, "1": 1}
    if name in _LOAD_ARRAYS:
        on_chip = _array(_LOAD_ARRAYS[name], op, tile)
        return _copy(on_chip.shape, on_chip.dtype, to=on_chip.scope)
    if name in _COMPUTE:
        return _COMPUTE[name](op, tile)
    raise CompileError(
        f"no intrinsic {name!r}; known: {', '.join(sorted([*_LOAD_ARRAYS, *_COMPUTE]))}"
    )


def _array(name: str, op: DenseOp, tile: Tile) -> Operand:
    """The tile of an array of the PrimFunc, on chip if there is a scope for it."""
    arrays = arrays_of(op)
    if name not in arrays:
        raise CompileError(f"dense op {op.label!r} has no array {name!r}")
    axes, dtype = arrays[name]
    return Operand(name, tuple(tile[axis] for axis in axes), dtype, SCOPES.get(name, "global"))


def _accumulators(op: DenseOp, tile: Tile, access: str, name: str = "acc") -> Operand:
    return Operand(name, (tile["m"], tile["n"]), op.accumulator_dtype, SCOPES["acc"], access)


_LOAD_ARRAYS = {**{load: array for array, load in LOADS.items()}, "ld_channel": "w_scale"}


def _copy(shape: tuple[int, ...], dtype: str, *, to: str, source: str = "global") -> _Definition:
    return _Definition(
        (Operand("to", shape, dtype, to, "w"), Operand("source", shape, dtype, source)),
        "S" * len(shape),
        shape,
        lambda buffers, at: buffers["source"][at],
    )


def _zero(op: DenseOp, tile: Tile) -> _Definition:
    acc = _accumulators(op, tile, "w")
    return _Definition(
        (acc,), "SS", acc.shape, lambda buffers, at: tirx.const(0, op.accumulator_dtype)
    )


def _digit_pass(name: str) -> Callable[[DenseOp, Tile], _Definition]:
    def define(op: DenseOp, tile: Tile) -> _Definition:
        plane = "act" if op.scheme == "dense" else name.removeprefix("mma_")
        operands = [_accumulators(op, tile, "rw"), _array(plane, op, tile)]
        operands.append(_array("w", op, tile))
        if op.group_size:
            operands.append(_array("w_scale", op, tile))

        def value(buffers: dict[str, Any], at: tuple[Any, ...]) -> Any:
            i, j, k = at
            scale = None
            if op.group_size:
                scale = buffers["w_scale"][j, k // _int64(op.group_size)]
            term = product(op, name, buffers[plane][i, k], buffers["w"][j, k], scale)
            return buffers["acc"][i, j] + term

        return _Definition(tuple(operands), "SSR", (tile["m"], tile["n"], tile["k"]), value)

    return define


def _minimum_pass(op: DenseOp, tile: Tile) -> _Definition:
    def value(buffers: dict[str, Any], at: tuple[Any, ...]) -> Any:
        i, j, g = at
        term = buffers["group_sums"][i, g].astype("float64")
        return buffers["acc"][i, j] + term * buffers["w_min"][j, g].astype("float64")

    operands = (
        _accumulators(op, tile, "rw"),
        _array("group_sums", op, tile),
        _array("w_min", op, tile),
    )
    return _Definition(operands, "SSR", (tile["m"], tile["n"], tile["g"]), value)


def _drain(op: DenseOp, tile: Tile) -> _Definition:
    names = PASSES if op.has_min else PASSES[:2]
    passes = [_accumulators(op, tile, "r", name) for name in names]
    out = Operand("out", (tile["m"], tile["n"]), op.out_dtype, SCOPES["acc"], "w")
    needed = [name for name in DRAIN_INDEX if name in arrays_of(op)]
    if op.group_size:
        needed.remove("w_scale")
    parameters = [_array(name, op, tile) for name in needed]

    def value(buffers: dict[str, Any], at: tuple[Any, ...]) -> Any:
        i, j = at
        total = buffers[names[0]][i, j]
        for name in names[1:]:
            total = total + buffers[name][i, j]
        index = {"m": i, "n": j, "1": _int64(0)}
        elements = {o.name: buffers[o.name][index[DRAIN_INDEX[o.name]]] for o in parameters}
        return drained(op, total, **elements)

    return _Definition((out, *passes, *parameters), "SS", out.shape, value)


_COMPUTE: dict[str, Callable[[DenseOp, Tile], _Definition]] = {
    "zero": _zero,
    "mma_lsb": _digit_pass("mma_lsb"),
    "mma_msb": _digit_pass("mma_msb"),
    "mma_min": _minimum_pass,
    "drain": _drain,
    "store": lambda op, tile: _copy(
        (tile["m"], tile["n"]), op.out_dtype, to="global", source=SCOPES["acc"]
    ),
}


def _build(definition: _Definition, call: str | None) -> tirx.PrimFunc:
    """Build the description, or with `call` the implementation that calls that function."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("intrinsic")
            buffers = {o.name: T.arg(o.name, _parameter(o)) for o in definition.operands}
            regions = {o.name: _region(buffers[o.name], o) for o in definition.operands}
            with T.sblock("root"):
                T.reads(*[regions[o.name] for o in definition.operands if "r" in o.access])
                T.writes(*[regions[o.name] for o in definition.operands if "w" in o.access])
                if call is None:
                    _loops(definition, buffers)
                else:
                    pointers = [buffers[o.name].access_ptr(o.access) for o in definition.operands]
                    T.evaluate(T.call_extern("int32", call, *pointers, *definition.extents))
        return builder.get()


def _loops(definition: _Definition, buffers: dict[str, Any]) -> None:
    """Write the loop nest. Loops of one iteration have no axis: blockizing drops those."""
    target = buffers[definition.operands[0].name]
    axes = [axis for axis, extent in enumerate(definition.extents) if extent > 1]
    with T.grid(*[_int64(extent) for extent in definition.extents]) as loops:
        variables = list(loops) if len(definition.extents) > 1 else [loops]
        with T.sblock("tile"):
            at = [_int64(0)] * len(variables)
            for axis in axes:
                at[axis] = T.axis.remap(definition.kinds[axis], [variables[axis]])
            value = definition.value(buffers, tuple(at))
            written = [v for v, kind in zip(at, definition.kinds, strict=True) if kind == "S"]
            T.buffer_store(target, value, written)


def _parameter(operand: Operand) -> Any:
    outer = [tirx.Var(f"stride{i}", "int64") for i in range(len(operand.shape) - 1)]
    return T.buffer(
        [_int64(extent) for extent in operand.shape],
        operand.dtype,
        scope=operand.scope,
        strides=[*outer, _int64(1)],
        offset_factor=1,
    )


def _region(buffer: Any, operand: Operand) -> Any:
    return buffer[tuple(slice(_int64(0), _int64(extent)) for extent in operand.shape)]


def _int64(value: int) -> Any:
    return tirx.IntImm("int64", value)
