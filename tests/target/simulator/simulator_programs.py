"""Programs and operands for the simulator's tests: every form of dense op, double-buffered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics import QuantizedWeights, dense_reference, encode
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.compute import Drain, MmaDns, MmaLsb, MmaMin, MmaMsb, StEnc, StOut
from sparqle_tvm.target.isa.header import Allocation, Header, Queue
from sparqle_tvm.target.isa.load import (
    LdAct,
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    LdZro,
)
from sparqle_tvm.target.isa.operands import Affine, Buffer, Condition, Extent
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.simulator import activation_tensors, weight_tensors

TINY = replace(
    PRESETS["sparqle/edge"],
    name="tiny",
    rows=4,
    cols=4,
    lanes=8,
    dram_bytes_per_cycle=8.0,
    dma_descriptor_cycles=5,
    activation_buffer_bytes=16384,
    scratchpad=False,
    weight_buffer_bytes=16384,
    accumulator_buffer_bytes=16384,
    drain_elements_per_cycle=4,
)
"""An accelerator small enough to count by hand: 4 x 4 PEs, 8 lanes, 8 bytes per cycle."""


@dataclass
class Tile:
    """Affine begin and clamped extent of a loop's tile."""

    begin: Affine
    extent: Extent


def tile(loop: int, size: int, limit: int | str) -> Tile:
    return Tile(Affine.loop(loop, size), Extent(size, limit, Affine.loop(loop, size)))


@dataclass
class Slots:
    """Where the operands of a double-buffered program lie."""

    lsb: Allocation
    pbm: Allocation | None
    msb: Allocation
    wgt: Allocation
    acc: Allocation
    row: Allocation | None = None
    chn: Allocation | None = None
    sum: Allocation | None = None
    grp: Allocation | None = None
    zro: Allocation | None = None


def allocate(builder: ProgramBuilder, rows: int, cols: int, chunk: int, slots: int) -> Slots:
    header = builder.header

    def act(name: str, nbytes: int) -> Allocation:
        return builder.allocate(name, Buffer.ACT, nbytes, slots)

    def wgt(name: str, nbytes: int) -> Allocation:
        return builder.allocate(name, Buffer.WGT, nbytes, slots)

    sparqle = header.op.scheme == "sparqle"
    return Slots(
        lsb=act("lsb", access.LSB.nbytes(header, rows, chunk)),
        pbm=act("pbm", access.PBM.nbytes(header, rows, chunk)) if sparqle else None,
        msb=act("msb", access.MSB.nbytes(header, rows, chunk)),
        wgt=wgt("wgt", access.WGT.nbytes(header, cols, chunk)),
        acc=builder.allocate("acc", Buffer.ACC, rows * cols * header.accumulator_bytes, slots),
        row=act("row", rows * header.row_bytes) if header.row_bytes else None,
        chn=wgt("chn", cols * header.channel_bytes) if header.channel_bytes else None,
        sum=act("sum", access.SUM.nbytes(header, rows, chunk)) if header.op.has_min else None,
        grp=wgt("grp", access.GRP.nbytes(header, cols, chunk)) if header.op.group_size else None,
        zro=act("zro", access.ZRO.nbytes(header, rows)) if header.op.row_centres else None,
    )


def dense_program(
    header: Header, rows: int, cols: int, *, slots: int = 2, row_split: int = 1
) -> Program:
    """Program of tiles of `rows` x `cols` x `header.k_chunk`: row tiles, column tiles, chunks."""
    b = ProgramBuilder(header)
    chunk = min(header.k_chunk, header.op.k)
    s = allocate(b, rows, cols, chunk, slots)
    for queue in (Queue.ACT_FREE, Queue.WGT_FREE, Queue.ACC_FREE):
        b.tokens(queue, slots)
    if s.row:
        b.tokens(Queue.ROW_FREE, slots)
    if s.chn:
        b.tokens(Queue.CHN_FREE, slots)
    with b.loop("M", rows) as i:
        m = tile(i, rows, "M")
        if s.row:
            b.wait(Queue.ROW_FREE)
            b.emit(LdRow(s.row.at((i,)), m.begin, m.extent))
            b.signal(Queue.ROW_READY)
            b.wait(Queue.ROW_READY)
        with b.loop(header.op.n, cols) as j:
            n = tile(j, cols, header.op.n)
            if s.chn:
                b.wait(Queue.CHN_FREE)
                b.emit(LdChn(s.chn.at((i, j)), n.begin, n.extent))
                b.signal(Queue.CHN_READY)
            b.wait(Queue.ACC_FREE)
            with b.loop(header.op.k, chunk) as c:
                k = tile(c, chunk, header.op.k)
                _load_chunk(b, s, (i, j, c), m, n, k)
                _multiply_chunk(b, s, (i, j, c), m, n, k, row_split)
            b.signal(Queue.ACC_READY)
            _store_tile(b, s, (i, j), m, n)
        if s.row:
            b.signal(Queue.ROW_FREE)
    return b.build()


def _load_chunk(
    b: ProgramBuilder, s: Slots, at: tuple[int, int, int], m: Tile, n: Tile, k: Tile
) -> None:
    planes = (m.begin, m.extent, k.begin, k.extent)
    weights = (n.begin, n.extent, k.begin, k.extent)
    b.wait(Queue.ACT_FREE)
    if s.pbm:
        b.emit(
            LdLsb(s.lsb.at(at), *planes),
            LdPbm(s.pbm.at(at), *planes),
            LdMsb(s.msb.at(at), *planes),
        )
        if s.zro:
            b.emit(LdZro(s.zro.at(at), m.begin, m.extent))
    else:
        b.emit(LdAct(s.lsb.at(at), s.msb.at(at), *planes))
    if s.sum:
        b.emit(LdSum(s.sum.at(at), *planes))
    b.signal(Queue.ACT_READY)
    b.wait(Queue.WGT_FREE)
    b.emit(LdWgt(s.wgt.at(at), *weights))
    if s.grp:
        b.emit(LdGrp(s.grp.at(at), *weights))
    b.signal(Queue.WGT_READY)


def _multiply_chunk(
    b: ProgramBuilder, s: Slots, at: tuple[int, int, int], m: Tile, n: Tile, k: Tile, split: int
) -> None:
    sizes = (m.extent, n.extent, k.extent)
    acc, wgt = s.acc.at(at[:2]), s.wgt.at(at)
    grp = s.grp.at(at) if s.grp else None
    b.wait(Queue.ACT_READY, Queue.WGT_READY)
    b.emit(MmaLsb(acc, s.lsb.at(at), wgt, grp, *sizes, Condition.first(at[2]), split))
    if s.pbm:
        digits = (s.pbm.at(at), s.msb.at(at), s.zro.at(at) if s.zro else None)
        b.emit(MmaMsb(acc, *digits, wgt, grp, *sizes, row_split=split))
    else:
        b.emit(MmaDns(acc, s.msb.at(at), wgt, grp, *sizes, row_split=split))
    if s.sum and grp:
        b.emit(MmaMin(acc, s.sum.at(at), grp, *sizes))
    b.signal(Queue.ACT_FREE, Queue.WGT_FREE)


def _store_tile(b: ProgramBuilder, s: Slots, at: tuple[int, int], m: Tile, n: Tile) -> None:
    acc = s.acc.at(at)
    b.wait(Queue.ACC_READY)
    if s.chn:
        b.wait(Queue.CHN_READY)
    row, chn = s.row.at(at[:1]) if s.row else None, s.chn.at(at) if s.chn else None
    b.emit(Drain(acc, row, chn, m.extent, n.extent))
    order = row if b.header.op.block_rows else None
    place = (acc, m.begin, m.extent, n.begin, n.extent)
    b.emit(StEnc(*place) if b.header.op.output == "encoded" else StOut(*place, order))
    b.signal(Queue.ACC_FREE)
    if s.chn:
        b.signal(Queue.CHN_FREE)


def header_for(
    accelerator: Accelerator, m: int, n: int, k: int, chunk: int, m_max: int = 0, **options: object
) -> Header:
    return Header(
        accelerator=accelerator,
        op=DenseOp(
            **{"m": m_max or m, "n": n, "k": k, "digit_bits": accelerator.digit_bits, **options}
        ),  # type: ignore[arg-type]
        k_chunk=chunk,
    )


def integer_header(m: int, n: int, k: int, chunk: int, **options: object) -> Header:
    """Header with the least to load: int32 outputs, no offset; TINY unless said otherwise."""
    accelerator = options.pop("accelerator", TINY)
    assert isinstance(accelerator, Accelerator)
    plain = {"window": "unsigned", "output": "int32", "label": "tiny"}
    return header_for(accelerator, m, n, k, chunk, **{**plain, **options})


@dataclass(frozen=True)
class Operands:
    """Random operands of an op and the exact result."""

    tensors: dict[Tensor, NDArray[Any]]
    q: NDArray[Any]
    weights: QuantizedWeights
    expected: NDArray[Any]


def random_operands(
    rng: np.random.Generator, header: Header, rows: int, density: float = 0.3
) -> Operands:
    """Draw activations with about `density` stored MSBs, weights and scales for a header."""
    k, window, n = header.op.digit_bits, header.op.window, header.op.n
    shape = (rows, header.op.k)
    centre: Any = header.op.centre
    if header.op.row_zeros:
        centre = rng.integers(0, 4**k, (rows, 1)) - (4**k // 2) * header.op.act_signed
    low = -(2 ** (2 * k - 1)) if header.op.act_signed else 0
    narrow = (-(2 ** (k - 1)), 2 ** (k - 1)) if window == "signed" else (0, 2**k)
    wide = rng.random(shape) < density
    near = np.clip(centre + rng.integers(*narrow, shape), low, low + 4**k - 1)
    q = np.where(wide, rng.integers(low, low + 4**k, shape), near).astype(header.op.act_dtype)
    weights = _random_weights(rng, header)
    offset = None
    if header.op.has_offset:
        offset = rng.integers(-99, 99, n).astype(np.float64 if header.op.group_size else np.int32)
    scale = rng.uniform(0.01, 1.0, (rows, 1)).astype(np.float32)
    tensors = {
        **activation_tensors(header, encode(q, k=k, window=window, zero_point=centre), scale),
        **weight_tensors(header, weights, offset),
    }
    return Operands(tensors, q, weights, _expected(header, q, centre, weights, scale, offset))


def _random_weights(rng: np.random.Generator, header: Header) -> QuantizedWeights:
    bits, shape = header.op.weight_bits, (header.op.n, header.op.k)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if header.op.weight_signed else (0, 2**bits)
    values = rng.integers(low, min(high, 128), shape).astype(np.int8)
    if not header.op.group_size:
        scale = rng.uniform(0.001, 0.1, shape[0]).astype(np.float32)
        return QuantizedWeights(values, scale, bits=bits)
    groups = (shape[0], shape[1] // header.op.group_size)
    minimum = rng.uniform(-1, 1, groups).astype(np.float16) if header.op.has_min else None
    return QuantizedWeights(
        values, rng.uniform(-0.1, 0.1, groups).astype(np.float16), minimum, bits=bits
    )


def _expected(
    header: Header,
    q: NDArray[Any],
    centre: Any,
    weights: QuantizedWeights,
    scale: NDArray[np.float32],
    offset: NDArray[Any] | None,
) -> NDArray[Any]:
    if header.op.digit_bits < 8 and header.op.output == "float32" and offset is None:
        return dense_reference(q, scale, weights, centre)
    q = q.astype(np.int64) - centre
    product = q @ weights.values.astype(np.int64).T
    if not header.op.group_size and offset is not None:
        product += offset
    if header.op.output == "int32":
        return product.astype(np.int32)
    if not header.op.group_size:
        return (product.astype(np.float32) * scale) * weights.scale
    # Every term is a multiple of 2^-24, sums are exact.
    total = np.zeros((len(q), header.op.n)) + (0 if offset is None else offset)
    for group, begin in enumerate(range(0, q.shape[1], header.op.group_size)):
        columns = slice(begin, begin + header.op.group_size)
        part = q[:, columns]
        products = part @ weights.values[:, columns].astype(np.int64).T
        total += products * weights.scale[:, group].astype(np.float64)
        if weights.minimum is not None:
            total += part.sum(axis=1)[:, None] * weights.minimum[:, group].astype(np.float64)
    return total.astype(np.float32) * scale
