"""The compiled executor: it runs the memory and arithmetic steps of a program in a given order.

Its program is a table of actions made by `values`; its memories are the on-chip buffers as bytes
(accumulators as their type), and DRAM by pointer. Decoded tiles are kept: a tile that is still in
its entry, or was loaded from the same place in DRAM as what is there, is not decoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.decode import (
    ActivationTile,
    decode_parameters,
    decode_plane,
    decode_sparse,
    decode_weights,
)
from sparqle_tvm.target.simulator.drain import drain, quantizer, store_outputs
from sparqle_tvm.target.simulator.encoded import store_encoded
from sparqle_tvm.target.simulator.multiply import Product, add_minima, multiply
from sparqle_tvm.target.simulator.native import compile_kernel
from sparqle_tvm.target.simulator.script import (
    Array,
    Scalar,
    cast,
    ceil_div,
    copy_bytes,
    either,
    function,
    loop,
    parameter,
    size,
    when,
)
from sparqle_tvm.target.simulator.spec import ValueSpec

# Actions; column 0 of the table.
COPY, SPLIT, MULTIPLY, MINIMA, DRAIN, STORE, ENCODE = range(7)

# Columns of the operands, by action. DRAM is the address in memory where there is one.
DRAM = 1
COPY_BUFFER, COPY_DST, COPY_PITCH, COPY_BYTES, COPY_ROWS = range(2, 7)
SPLIT_LSB, SPLIT_MSB, SPLIT_PITCH, SPLIT_COLS, SPLIT_ROWS = range(2, 7)
CELL, M, N, K, ZERO = range(2, 7)
PLANE, ACT, STREAM, WGT, GRP = range(7, 12)
ACT_ENTRY, ACT_KEY, WGT_ENTRY, WGT_KEY, GRP_ENTRY, GRP_KEY = range(12, 18)
DRAIN_ROW, DRAIN_CHANNEL, DRAIN_OFFSET, DRAIN_FLOAT = range(5, 9)
STORE_PITCH, STORE_ORDER, STORE_ORDER_BYTES = range(5, 8)
DRAIN_SCALE, DRAIN_ZERO, DRAIN_LOW, DRAIN_HIGH = range(9, 13)
# ST.ENC: addresses in memory are those of OUT_LSB (DRAM), OUT_PBM, OUT_MSB and OUT_MSB_PTR.
ENC_LSB_PITCH, ENC_PBM_PITCH, ENC_PBM, ENC_MSB, ENC_POINTERS, ENC_GROUP, ENC_BIAS = range(5, 12)
COLUMNS = 18

# Values of PLANE: LSB digits, the same with the top bit flipped (window ``signed``), a dense plane
# of MSB digits, MSB digits behind a bitmap.
LSB_PLANE, FLIPPED_PLANE, MSB_PLANE, SPARSE_PLANE = range(4)

# Elements per entry of the pools of decoded tiles.
ACT_SIZE, SUMS_SIZE, WGT_SIZE, GRP_SIZE = range(4)


@cache
def executor(spec: ValueSpec) -> Callable[..., None]:
    """Compile the executor for an op's formats.

    Arguments: table (actions, COLUMNS) int64; act, wgt uint8 with slack behind them; acc of the
    accumulator's type; pools of decoded activations, their span sums (int32), weights, parameters
    (float64); which key each entry of the activation, weight and parameter pools holds (int64,
    -1: none); entry sizes (4) int64; scratch int64 (rows + 1), scratch float64.
    """
    return compile_kernel(function("execute", lambda: _body(spec)), "execute")


class _Memory:
    """Arguments of the executor."""

    def __init__(self, spec: ValueSpec) -> None:
        self.actions = size("actions")
        self.table = parameter("table", "int64", self.actions, COLUMNS)
        self.act = parameter("act", "uint8", size("act_bytes"))
        self.wgt = parameter("wgt", "uint8", size("wgt_bytes"))
        self.acc = parameter("acc", spec.accumulator, size("cells"))
        self.activations = parameter("activations", spec.dot.activation, size("act_room"))
        self.sums = parameter("sums", "int32", size("sums_room"))
        self.weights = parameter("weights", spec.dot.weight, size("wgt_room"))
        self.parameters = parameter("parameters", "float64", size("grp_room"))
        self.act_held = parameter("act_held", "int64", size("act_entries"))
        self.wgt_held = parameter("wgt_held", "int64", size("wgt_entries"))
        self.grp_held = parameter("grp_held", "int64", size("grp_entries"))
        self.sizes = parameter("sizes", "int64", 4)
        self.offsets = parameter("offsets", "int64", size("rows"))
        self.scratch = parameter("scratch", "float64", size("scratch_room"))


def _body(spec: ValueSpec) -> None:
    memory = _Memory(spec)
    emit = {
        COPY: _copy,
        SPLIT: _split,
        MULTIPLY: _multiply,
        DRAIN: _drain,
        STORE: _store,
    }
    if spec.has_min:
        emit[MINIMA] = _minima
    if spec.encoded:
        del emit[STORE]
        emit[ENCODE] = _encode
    with loop(memory.actions) as action:
        for kind, body in emit.items():
            with when(memory.table[action, 0] == kind):
                body(spec, memory, action)


def _copy(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    table, nbytes = memory.table, memory.table[action, COPY_BYTES]
    for number, buffer in enumerate((memory.act, memory.wgt)):
        with when(table[action, COPY_BUFFER] == number), loop(table[action, COPY_ROWS]) as row:
            source = table[action, DRAM] + row * table[action, COPY_PITCH]
            target = buffer.at(table[action, COPY_DST] + row * nbytes)
            copy_bytes(target, T.reinterpret("handle", source), nbytes)


def _split(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    """Cut 2k-bit activations into two planes of digits."""
    table, act, k = memory.table, memory.act, spec.k
    cols = table[action, SPLIT_COLS]
    plane_bytes, row_bytes = ceil_div(cols * k, 8), ceil_div(cols * 2 * k, 8)
    staged = memory.scratch.view("uint8", memory.scratch.buffer.shape[0] * 8)
    with loop(table[action, SPLIT_ROWS]) as row:
        source = table[action, DRAM] + row * table[action, SPLIT_PITCH]
        # Bits behind the last column read as zero.
        staged[row_bytes] = 0
        copy_bytes(staged.at(0), T.reinterpret("handle", source), row_bytes)
        with loop(plane_bytes) as byte:
            # 2k-bit elements of one plane byte: 16 bits of the row, low digit first.
            word = cast("int32", staged[2 * byte]) + T.shift_left(
                cast("int32", staged[2 * byte + 1]), 8
            )
            for plane, column in ((0, SPLIT_LSB), (1, SPLIT_MSB)):
                packed: Any = T.int32(0)
                for i in range(8 // k):
                    digit = T.bitwise_and(T.shift_right(word, 2 * k * i + k * plane), 2**k - 1)
                    packed = T.bitwise_or(packed, T.shift_left(digit, k * i))
                act[table[action, column] + row * plane_bytes + byte] = cast("uint8", packed)


def _multiply(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    table = memory.table
    p = _product(memory, action, spec.k * cast("int64", table[action, PLANE] >= MSB_PLANE))
    _ensure(
        memory.act_held,
        table[action, ACT_ENTRY],
        table[action, ACT_KEY],
        lambda: _decode_activations(spec, memory, action, p),
    )
    _ensure(
        memory.wgt_held,
        table[action, WGT_ENTRY],
        table[action, WGT_KEY],
        lambda: decode_weights(
            *(spec, memory.wgt, table[action, WGT], p.n, p.k, memory.weights, p.weight_entry)
        ),
    )
    if spec.grouped:
        _ensure_parameters(spec, memory, action, p)
    multiply(spec, p)


def _decode_activations(spec: ValueSpec, memory: _Memory, action: Any, p: Product) -> None:
    table = memory.table
    tile = ActivationTile(
        act=memory.act,
        address=table[action, ACT],
        stream=table[action, STREAM],
        rows=p.m,
        k=p.k,
        pool=memory.activations,
        entry=p.activation_entry,
        sums=memory.sums,
        sums_entry=p.sums_entry,
        offsets=memory.offsets,
    )
    either(
        table[action, PLANE] == SPARSE_PLANE,
        lambda: decode_sparse(spec, tile),
        lambda: decode_plane(
            spec, tile, table[action, PLANE] == MSB_PLANE, table[action, PLANE] != LSB_PLANE
        ),
    )


def _minima(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    p = _product(memory, action, T.int64(0))
    _ensure_parameters(spec, memory, action, p)
    add_minima(spec, p, memory.act, memory.table[action, ACT], memory.scratch)


def _ensure_parameters(spec: ValueSpec, memory: _Memory, action: Any, p: Product) -> None:
    table = memory.table
    _ensure(
        memory.grp_held,
        table[action, GRP_ENTRY],
        table[action, GRP_KEY],
        lambda: decode_parameters(
            *(spec, memory.wgt, table[action, GRP], p.n, p.k, memory.parameters, p.parameter_entry)
        ),
    )


def _ensure(held: Array, entry: Any, key: Any, decode: Callable[[], None]) -> None:
    """Decode a tile unless its entry holds it; the key -1 is never held."""
    with when(T.Or(key < 0, held[entry] != key)):
        decode()
        held[entry] = key


def _product(memory: _Memory, action: Any, shift: Any) -> Product:
    table, sizes = memory.table, memory.sizes
    return Product(
        m=table[action, M],
        n=table[action, N],
        k=table[action, K],
        activations=memory.activations,
        activation_entry=table[action, ACT_ENTRY] * sizes[ACT_SIZE],
        sums=memory.sums,
        sums_entry=table[action, ACT_ENTRY] * sizes[SUMS_SIZE],
        weights=memory.weights,
        weight_entry=table[action, WGT_ENTRY] * sizes[WGT_SIZE],
        parameters=memory.parameters,
        parameter_entry=table[action, GRP_ENTRY] * sizes[GRP_SIZE],
        acc=memory.acc,
        cell=table[action, CELL],
        zero=table[action, ZERO],
        shift=shift,
    )


def _drain(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    table = memory.table
    drain(
        spec,
        acc=memory.acc,
        cell=table[action, CELL],
        m=table[action, M],
        n=table[action, N],
        scales=memory.act.at(table[action, DRAIN_ROW]),
        channels=lambda offset: memory.wgt.at(table[action, DRAIN_CHANNEL] + offset),
        has_offset=table[action, DRAIN_OFFSET],
        as_float=table[action, DRAIN_FLOAT],
        quantize=_quantizer(table, action) if spec.encoded else None,
        scratch=memory.scratch,
    )


def _quantizer(table: Array, action: Any) -> Callable[[Any], Any]:
    scale = T.reinterpret("float32", cast("int32", table[action, DRAIN_SCALE]))
    limits = (DRAIN_ZERO, DRAIN_LOW, DRAIN_HIGH)
    return quantizer(scale, *(cast("int32", table[action, column]) for column in limits))


def _encode(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    table = memory.table
    store_encoded(
        spec,
        acc=memory.acc,
        cell=table[action, CELL],
        rows=table[action, M],
        cols=table[action, N],
        targets=(table[action, DRAM], table[action, ENC_PBM], table[action, ENC_MSB]),
        pitches=(table[action, ENC_LSB_PITCH], table[action, ENC_PBM_PITCH]),
        pointers=table[action, ENC_POINTERS],
        group=table[action, ENC_GROUP],
        bias=cast("int32", table[action, ENC_BIAS]),
        staging=memory.scratch.view("uint8", memory.scratch.buffer.shape[0] * 8),
    )


def _store(spec: ValueSpec, memory: _Memory, action: Any) -> None:
    table = memory.table
    store_outputs(
        spec,
        acc=memory.acc,
        cell=table[action, CELL],
        rows=table[action, M],
        cols=table[action, N],
        target=table[action, DRAM],
        pitch=table[action, STORE_PITCH],
        order=lambda row: _row_number(memory, action, row),
    )


def _row_number(memory: _Memory, action: Any, row: Any) -> Any:
    """Row of OUT that row `row` of a store belongs to, counted from where the store begins."""
    order_bytes = memory.table[action, STORE_ORDER_BYTES]
    number = Scalar("int64", cast("int64", row))
    with when(order_bytes > 0):
        at = memory.table[action, STORE_ORDER] + row * order_bytes
        low = cast("int64", memory.act[at]) + T.shift_left(cast("int64", memory.act[at + 1]), 8)
        number.set(low)
        with when(order_bytes > 2):
            high = cast("int64", memory.act[at + 2])
            high = high + T.shift_left(cast("int64", memory.act[at + 3]), 8)
            number.add(T.shift_left(high, 16))
    return number.value
