"""Programs written by hand with the builder: tiled dense ops of every scheme and format."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.isa import access
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
from sparqle_tvm.target.isa.operands import ALWAYS, Affine, Buffer, Condition, Extent, M
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program, ProgramBuilder

SMALL = replace(
    PRESETS["sparqle/edge"],
    name="small",
    rows=4,
    cols=4,
    lanes=8,
    activation_buffer_bytes=8192,
    scratchpad=False,
    weight_buffer_bytes=8192,
    accumulator_buffer_bytes=16384,
)


@dataclass(frozen=True)
class Tiles:
    """Tile of m rows and n channels; which operand stays while the other walks."""

    m: int
    n: int
    rows_outer: bool = True
    stay: bool = False
    slots: int = 2
    row_split: int = 1


def make_header(
    m_max: int, n: int, k: int, k_chunk: int, accelerator: Accelerator = SMALL, **fields: object
) -> Header:
    """Header of a small op; `fields` override defaults."""
    return Header(
        accelerator=accelerator,
        op=DenseOp(*(m_max, n, k), label="hand", digit_bits=accelerator.digit_bits, **fields),  # type: ignore[arg-type]
        k_chunk=k_chunk,
    )


def with_op(header: Header, **fields: object) -> Header:
    """The header with other fields of its op."""
    return replace(header, op=replace(header.op, **fields))  # type: ignore[arg-type]


class DenseWriter:
    """Writes the program of a dense op for a header and tiles."""

    def __init__(self, header: Header, tiles: Tiles) -> None:
        self.tiles = tiles
        self.header = header
        self.b = ProgramBuilder(header)
        self.k_cols = min(header.k_chunk, header.op.k)
        self._allocate()

    def _allocate(self) -> None:
        h, t, k = self.header, self.tiles, self.k_cols
        self.slots: dict[str, Allocation] = {}

        def add(name: str, buffer: Buffer, nbytes: int) -> None:
            self.slots[name] = self.b.allocate(name, buffer, nbytes, t.slots)

        if h.op.scheme == "sparqle":
            add("lsb", Buffer.ACT, access.LSB.nbytes(h, t.m, k))
            add("pbm", Buffer.ACT, access.PBM.nbytes(h, t.m, k))
            if h.op.row_centres:
                add("zro", Buffer.ACT, access.ZRO.nbytes(h, t.m))
            add("msb", Buffer.ACT, access.MSB.nbytes(h, t.m, k))
        else:
            add("lsb", Buffer.ACT, access.MSB_PLANE.nbytes(h, t.m, k))
            add("msb", Buffer.ACT, access.MSB_PLANE.nbytes(h, t.m, k))
        if h.op.has_min:
            add("sum", Buffer.ACT, access.SUM.nbytes(h, t.m, k))
        add("wgt", Buffer.WGT, access.WGT.nbytes(h, t.n, k))
        if h.op.group_size:
            add("grp", Buffer.WGT, access.GRP.nbytes(h, t.n, k))
        add("acc", Buffer.ACC, t.m * t.n * h.accumulator_bytes)
        for queue in (Queue.ACT_FREE, Queue.WGT_FREE, Queue.ACC_FREE):
            self.b.tokens(queue, t.slots)
        if h.row_bytes:
            add("row", Buffer.ACT, access.ROW.nbytes(h, t.m))
            self.b.tokens(Queue.ROW_FREE, t.slots)
        if h.channel_bytes:
            add("chn", Buffer.WGT, access.CHN.nbytes(h, t.n))
            self.b.tokens(Queue.CHN_FREE, t.slots)

    def write(self) -> Program:
        """The program: loops over rows and channels (in the order asked for), K innermost."""
        h, t, b = self.header, self.tiles, self.b
        bounds = [(M, t.m), (h.op.n, t.n)]
        outer, inner = bounds if t.rows_outer else bounds[::-1]
        stay = t.stay and h.chunks == 1
        with b.loop(*outer) as first:
            self.m_loop, self.n_loop = (first, -1) if t.rows_outer else (-1, first)
            self.k_loops: tuple[int, ...] = ()
            if stay:
                self._load_act((first,)) if t.rows_outer else self._load_wgt((first,))
                b.wait(Queue.ACT_READY if t.rows_outer else Queue.WGT_READY)
            with b.loop(*inner) as second:
                if t.rows_outer:
                    self.n_loop = second
                else:
                    self.m_loop = second
                self._tile((first, second), stay)
            if stay:
                b.signal(Queue.ACT_FREE if t.rows_outer else Queue.WGT_FREE)
        return b.build()

    def _tile(self, visit: tuple[int, int], stay: bool) -> None:
        b, t = self.b, self.tiles
        self.visit = visit
        b.wait(Queue.ACC_FREE)
        if self.header.chunks > 1:
            with b.loop(self.header.op.k, self.k_cols) as k:
                self.k_loops = (k,)
                self._chunk((*visit, k), (*visit, k), Condition.first(k), False, False)
            self.k_loops = ()
        else:
            act = (visit[0],) if stay and t.rows_outer else visit
            wgt = (visit[0],) if stay and not t.rows_outer else visit
            stays = (stay and t.rows_outer, stay and not t.rows_outer)
            self._chunk(act, wgt, ALWAYS, *stays)
        b.signal(Queue.ACC_READY)
        self._finish(visit)

    def _rows(self) -> tuple[Affine, Extent]:
        start = Affine.loop(self.m_loop, self.tiles.m)
        return start, Extent(self.tiles.m, M, start)

    def _channels(self) -> tuple[Affine, Extent]:
        start = Affine.loop(self.n_loop, self.tiles.n)
        return start, Extent(self.tiles.n, self.header.op.n, start)

    def _columns(self) -> tuple[Affine, Extent]:
        start = Affine.loop(self.k_loops[0], self.k_cols) if self.k_loops else Affine()
        return start, Extent(self.k_cols, self.header.op.k, start)

    def _load_act(self, visit: tuple[int, ...]) -> None:
        b, s = self.b, self.slots
        tile = (*self._rows(), *self._columns())
        b.wait(Queue.ACT_FREE)
        if self.header.op.scheme == "sparqle":
            b.emit(LdLsb(s["lsb"].at(visit), *tile), LdPbm(s["pbm"].at(visit), *tile))
            b.emit(LdMsb(s["msb"].at(visit), *tile))
            if self.header.op.row_centres:
                b.emit(LdZro(s["zro"].at(visit), *self._rows()))
        else:
            b.emit(LdAct(s["lsb"].at(visit), s["msb"].at(visit), *tile))
        if self.header.op.has_min:
            b.emit(LdSum(s["sum"].at(visit), *tile))
        b.signal(Queue.ACT_READY)

    def _load_wgt(self, visit: tuple[int, ...]) -> None:
        b, s = self.b, self.slots
        tile = (*self._channels(), *self._columns())
        b.wait(Queue.WGT_FREE)
        b.emit(LdWgt(s["wgt"].at(visit), *tile))
        if self.header.op.group_size:
            b.emit(LdGrp(s["grp"].at(visit), *tile))
        b.signal(Queue.WGT_READY)

    def _chunk(
        self,
        act: tuple[int, ...],
        wgt: tuple[int, ...],
        zero: Condition,
        act_stays: bool,
        wgt_stays: bool,
    ) -> None:
        b, s, h = self.b, self.slots, self.header
        if not act_stays:
            self._load_act(act)
            b.wait(Queue.ACT_READY)
        if not wgt_stays:
            self._load_wgt(wgt)
            b.wait(Queue.WGT_READY)
        acc, w = s["acc"].at(self.visit), s["wgt"].at(wgt)
        grp = s["grp"].at(wgt) if h.op.group_size else None
        sizes = (self._rows()[1], self._channels()[1], self._columns()[1])
        split = self.tiles.row_split
        b.emit(MmaLsb(acc, s["lsb"].at(act), w, grp, *sizes, zero=zero, row_split=split))
        if h.op.scheme == "sparqle":
            pbm, msb = s["pbm"].at(act), s["msb"].at(act)
            zeros = s["zro"].at(act) if h.op.row_centres else None
            b.emit(MmaMsb(acc, pbm, msb, zeros, w, grp, *sizes, row_split=split))
        else:
            b.emit(MmaDns(acc, s["msb"].at(act), w, grp, *sizes, row_split=split))
        if h.op.has_min:
            assert grp is not None
            b.emit(MmaMin(acc, s["sum"].at(act), grp, *sizes))
        if not act_stays:
            b.signal(Queue.ACT_FREE)
        if not wgt_stays:
            b.signal(Queue.WGT_FREE)

    def _finish(self, visit: tuple[int, ...]) -> None:
        b, s, h = self.b, self.slots, self.header
        (row, rows), (col, cols) = self._rows(), self._channels()
        if "row" in s:
            b.wait(Queue.ROW_FREE)
            b.emit(LdRow(s["row"].at(visit), row, rows))
            b.signal(Queue.ROW_READY)
        if "chn" in s:
            b.wait(Queue.CHN_FREE)
            b.emit(LdChn(s["chn"].at(visit), col, cols))
            b.signal(Queue.CHN_READY)
        acc = s["acc"].at(visit)
        ready = (
            [Queue.ACC_READY] + [Queue.ROW_READY] * ("row" in s) + [Queue.CHN_READY] * ("chn" in s)
        )
        b.wait(*ready)
        scales = s["row"].at(visit) if "row" in s else None
        channels = s["chn"].at(visit) if "chn" in s else None
        b.emit(Drain(acc, scales, channels, rows, cols))
        if "row" in s and not h.op.block_rows:
            b.signal(Queue.ROW_FREE)
        if "chn" in s:
            b.signal(Queue.CHN_FREE)
        order = scales if h.op.block_rows else None
        encoded = h.op.output == "encoded"
        tile = (acc, row, rows, col, cols)
        b.emit(StEnc(*tile) if encoded else StOut(*tile, order))
        b.signal(Queue.ACC_FREE)
        if h.op.block_rows:
            b.signal(Queue.ROW_FREE)


def dense_program(header: Header, tiles: Tiles) -> Program:
    """Program of a dense op by hand."""
    return DenseWriter(header, tiles).write()
