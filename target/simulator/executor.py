"""The compiled executor: it runs the memory and arithmetic steps of a program in a given order.

Its program is a table of actions made by `actions`; its memories are the on-chip buffers as bytes
(accumulators as their type), and DRAM by pointer. Decoded tiles are kept: a tile that is still in
its entry, or was loaded from the same place in DRAM as what is there, is not decoded again. The
passes over both planes of a tile are one product of integers of 2k bits where `actions` lets them
be, and those fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.decode import (
    decode_parameters,
    decode_plane,
    decode_sparse,
    decode_weights,
    join_planes,
)
from sparqle_tvm.target.simulator.drain import drain, store_encoded, store_outputs
from sparqle_tvm.target.simulator.multiply import add_minima, multiply
from sparqle_tvm.target.simulator.native import compile_kernel
from sparqle_tvm.target.simulator.spec import (
    FLIPPED_PLANE,
    MSB_PLANE,
    SPARSE_PLANE,
    Action,
    Memory,
    ValueSpec,
)
from sparqle_tvm.tirscript import cast, ceil_div, copy_bytes, either, loop, when

_PRODUCT = ("cell", "m", "n", "k", "zero", "act", "grp", "grp_entry", "grp_key")

ACTIONS: Mapping[str, tuple[str, ...]] = {
    "copy": ("buffer", "dst", "pitch", "nbytes", "rows"),
    "split": ("lsb", "msb", "pitch", "cols", "rows"),
    "multiply": (
        *(*_PRODUCT, "plane", "stream", "turn", "zeros", "wgt"),
        *("act_entry", "act_key", "wgt_entry", "wgt_key"),
        # The plane of low digits, where it is multiplied together with this one; key -1: it is not.
        *("low", "low_plane", "low_entry", "low_key"),
    ),
    "minima": _PRODUCT,
    "drain": (
        *("cell", "m", "n", "row", "channel", "has_offset", "as_float"),
        *("zeros", "scale", "zero", "low", "high"),
        *("mid_scale", "mid_zero", "mid_low", "mid_high"),
    ),
    "store": ("cell", "rows", "cols", "pitch", "order", "order_bytes"),
    # Addresses in memory are those of OUT_LSB (dram), OUT_PBM, OUT_MSB and OUT_MSB_PTR.
    "encode": (
        *("cell", "rows", "cols", "lsb_pitch", "pbm", "pbm_pitch", "msb"),
        *("pointers", "group", "shift", "edge"),
    ),
}
"""Operands of every kind of action, in the order of their columns."""

COLUMNS = 2 + max(map(len, ACTIONS.values()))
"""Number of the action, `dram`, operands."""


def number(action: str) -> int:
    """Number of a kind of action."""
    return list(ACTIONS).index(action)


def column(action: str, operand: str) -> int:
    """Column of an operand."""
    return 1 if operand == "dram" else 2 + ACTIONS[action].index(operand)


@cache
def executor(spec: ValueSpec) -> Callable[..., None]:
    """Compile the executor for an op's formats.

    Arguments: table (actions, COLUMNS) int64; act, wgt uint8 with slack behind them; acc of the
    accumulator's type; pools of decoded activations, their span sums (int32), weights, parameters
    (float64); which key each entry of the activation, weight and parameter pools holds (int64,
    -1: none), and whether that of the activation pool is of joined planes; entry sizes (4) int64;
    scratch int64 (rows + 1), scratch float64.
    """
    return compile_kernel("execute", lambda: _body(spec))


def _body(spec: ValueSpec) -> None:
    memory = Memory(spec, COLUMNS)
    emit: dict[str, Callable[[ValueSpec, Action], None]] = {
        "copy": _copy,
        "split": _split,
        "multiply": _multiply,
        "drain": drain,
        "encode" if spec.encoded else "store": store_encoded if spec.encoded else store_outputs,
    }
    if spec.has_min:
        emit["minima"] = _minima
    with loop(memory.actions) as index:
        for kind, body in emit.items():
            with when(memory.table[index, 0] == number(kind)):
                body(spec, Action(memory, index, ACTIONS[kind]))


def _copy(spec: ValueSpec, a: Action) -> None:
    for buffer, target in enumerate((a.memory.act, a.memory.wgt)):
        with when(a["buffer"] == buffer), loop(a["rows"]) as row:
            source = T.reinterpret("handle", a["dram"] + row * a["pitch"])
            copy_bytes(target.at(a["dst"] + row * a["nbytes"]), source, a["nbytes"])


def _split(spec: ValueSpec, a: Action) -> None:
    """Cut 2k-bit activations into two planes of digits."""
    act, k, staged = a.memory.act, spec.k, a.memory.staging
    plane_bytes, row_bytes = ceil_div(a["cols"] * k, 8), ceil_div(a["cols"] * 2 * k, 8)
    with loop(a["rows"]) as row:
        source = a["dram"] + row * a["pitch"]
        # Bits behind the last column read as zero.
        staged[row_bytes] = 0
        copy_bytes(staged.at(0), T.reinterpret("handle", source), row_bytes)
        with loop(plane_bytes) as byte:
            # 2k-bit elements of one plane byte: 16 bits of the row, low digit first.
            word = cast("int32", staged[2 * byte]) + T.shift_left(
                cast("int32", staged[2 * byte + 1]), 8
            )
            for plane, target in enumerate(("lsb", "msb")):
                packed: Any = T.int32(0)
                for i in range(8 // k):
                    digit = T.bitwise_and(T.shift_right(word, 2 * k * i + k * plane), 2**k - 1)
                    packed = T.bitwise_or(packed, T.shift_left(digit, k * i))
                act[a[target] + row * plane_bytes + byte] = cast("uint8", packed)


def _multiply(spec: ValueSpec, a: Action) -> None:
    if spec.joins_planes:
        with when(a["low_key"] >= 0):
            _ensure(a, "act", lambda: _decode_low(spec, a), tile="low")
    _ensure(a, "act", lambda: _decode_activations(spec, a))
    _ensure(a, "wgt", lambda: decode_weights(spec, a))
    if spec.grouped:
        _ensure(a, "grp", lambda: decode_parameters(spec, a))
    multiply(spec, a)


def _decode_activations(spec: ValueSpec, a: Action) -> None:
    either(
        a["plane"] == SPARSE_PLANE,
        lambda: decode_sparse(spec, a),
        lambda: _decode_dense(spec, a, "act"),
    )
    if spec.joins_planes:
        a.memory.joined[a["act_entry"]] = 0
        with when(a["low_key"] >= 0):
            join_planes(spec, a)


def _decode_low(spec: ValueSpec, a: Action) -> None:
    _decode_dense(spec, a, "low")
    a.memory.joined[a["low_entry"]] = 0


def _decode_dense(spec: ValueSpec, a: Action, tile: str) -> None:
    plane = a["low_plane" if tile == "low" else "plane"]
    complement = plane == MSB_PLANE
    decode_plane(spec, a, tile, complement, T.Or(complement, plane == FLIPPED_PLANE))


def _minima(spec: ValueSpec, a: Action) -> None:
    _ensure(a, "grp", lambda: decode_parameters(spec, a))
    add_minima(spec, a)


def _ensure(a: Action, pool: str, decode: Callable[[], None], tile: str = "") -> None:
    """Decode a tile (named as its pool) unless its entry holds it; the key -1 is never held."""
    tile = tile or pool
    held, entry, key = a.memory.held[pool], a[f"{tile}_entry"], a[f"{tile}_key"]
    with when(T.Or(key < 0, held[entry] != key)):
        decode()
        held[entry] = key
