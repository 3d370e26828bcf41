"""From a scheduled PrimFunc to a program: loops, addresses, tokens.

What the schedule says is taken from the lowered function (`target.compile.lowered`): which
tiles are loaded where, how long they live (the loop at which they are allocated), what multiplies
them. What the hardware needs is added here:

- *Loops over rows* get the bound M instead of the bucket; edge tiles are clamped.
- *Addresses.* A tile's bytes are those of its physical form (`target.isa.buffers`). An
  allocation with several slots moves on to the next slot with every visit of the loops around it.
- *Tokens.* Tiles that live in the same loop are loaded together: LOAD waits for a free slot before
  the first load and signals after the last, the reader waits before its first use and signals
  after its last. Accumulators pass between MMA and STORE in the same way.
- *Accumulators.* Every pass of the function has its own; the drain adds them. The hardware adds
  everything into one, which is the same sum exactly, cleared by the first MMA of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from tvm import IRModule, s_tir, tirx

from sparqle_tvm.errors import CompileError, TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.lowered import CallNode, TileRef, lower
from sparqle_tvm.target.compile.plan import Plan, PlannedBody, PlannedLoop, make_plan
from sparqle_tvm.target.compile.schedule import ROW_SPLIT_ATTR
from sparqle_tvm.target.isa.base import Instruction
from sparqle_tvm.target.isa.buffers import LOADED, STORAGES, aligned, filled
from sparqle_tvm.target.isa.compute import Drain, MmaDns, MmaLsb, MmaMin, MmaMsb, StEnc, StOut
from sparqle_tvm.target.isa.header import Allocation, Header
from sparqle_tvm.target.isa.load import LdAct
from sparqle_tvm.target.isa.operands import (
    ALWAYS,
    NEVER,
    Address,
    Affine,
    Buffer,
    Condition,
    Extent,
    Limit,
    M,
)
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program, ProgramBuilder
from sparqle_tvm.target.verify import verify as verify_program


def generate(
    scheduled: s_tir.Schedule | tirx.PrimFunc | IRModule,
    op: DenseOp,
    accelerator: Accelerator,
    *,
    verify: bool = True,
) -> Program:
    """Generate the program of a scheduled split dense op.

    Parameters
    ----------
    scheduled : s_tir.Schedule, PrimFunc or IRModule of one function
        Every block of it an intrinsic, as `schedule.schedule_with` leaves it.
    op : DenseOp
        The op; without a label its extents are its name in listings.
    accelerator : Accelerator
        The machine.
    verify : bool
        Whether to check the program; leave that out only if it is checked elsewhere.

    Returns
    -------
    Program
        It serves every row count up to `op.m`.

    Raises
    ------
    CompileError
        If the function is not of that op, or does what the hardware has no instructions for.
    TargetError
        If tiles do not fit a buffer.
    ProgramError
        If the program does not pass verification.
    """
    body, extents = lower(scheduled)
    if extents != (op.m, op.n, op.k):
        raise CompileError(
            f"the function computes {' x '.join(map(str, extents))}, the op is "
            f"{op.m} x {op.n} x {op.k}"
        )
    if not op.label:
        op = replace(op, label=f"dense {op.m} x {op.n} x {op.k}")
    program = _Generator(op, accelerator, make_plan(body, op)).run()
    if verify:
        verify_program(program)
    return program


@dataclass(frozen=True)
class _Place:
    """Where tiles of one kind lie: the allocation, the loops that rotate it, bytes of a tile."""

    allocation: Allocation
    rotate: tuple[int, ...]
    tile_bytes: int


@dataclass(frozen=True)
class _OpenLoop:
    """A loop of the plan and its number in the program."""

    planned: PlannedLoop
    loop: int


class _Generator:
    """Emits the program of a plan."""

    def __init__(self, op: DenseOp, accelerator: Accelerator, plan: Plan) -> None:
        """Begin with an empty program."""
        self.op, self.plan = op, plan
        header = Header(accelerator=accelerator, op=op, k_chunk=plan.tile["k"])
        self.builder = ProgramBuilder(header)
        self.real = {"m": op.m, "n": op.n, "k": op.k}
        self.places: dict[str, _Place] = {}
        self.open: list[_OpenLoop] = []
        # Loops around the accumulators, and whether an MMA clears them already.
        self.accumulator_depth = 0
        self.cleared = False
        # Row parameters of the last drain.
        self.rows: TileRef | None = None

    def run(self) -> Program:
        """Emit everything."""
        self._check_capacity()
        self._body(self.plan.body)
        return self.builder.build()

    def _check_capacity(self) -> None:
        header = self.builder.header
        used = dict.fromkeys(Buffer, 0)
        for name, slots in self.plan.slots.items():
            used[STORAGES[name].buffer] += self._slot_bytes(name) * slots
        tile = " x ".join(str(self.plan.tile[axis]) for axis in "mnk")
        machine = header.accelerator
        parts = {
            f"{buffer.name} buffer": (nbytes, machine.memory_bytes(buffer.word))
            for buffer, nbytes in used.items()
        }
        if machine.scratchpad:
            parts = {"scratchpad": (sum(used.values()), machine.onchip_bytes)}
        for name, (nbytes, capacity) in parts.items():
            if nbytes > capacity:
                raise TargetError(
                    f"{self.op.label}: tiles of {tile} take {nbytes} bytes of the "
                    f"{name}, accelerator {machine.name!r} has "
                    f"{capacity}; choose smaller tiles or fewer slots"
                )

    def _tile_bytes(self, name: str) -> int:
        tile = {axis: min(self.plan.tile[axis], self.real[axis]) for axis in "mnk"}
        return int(aligned(STORAGES[name].tile_bytes(self.builder.header, tile)))

    def _slot_bytes(self, name: str) -> int:
        return self._tile_bytes(name) * math.prod(self.plan.grids[name])

    def _body(self, body: PlannedBody) -> None:
        for name in body.storages:
            self._allocate(name)
        for step in body.steps:
            self.builder.wait(*step.waits)
            if isinstance(step.child, PlannedLoop):
                self._loop(step.child)
            else:
                _EMITTERS[step.child.name](self, step.child)
            self.builder.signal(*step.signals)

    def _allocate(self, name: str) -> None:
        storage, slots = STORAGES[name], self.plan.slots[name]
        allocation = self.builder.allocate(name, storage.buffer, self._slot_bytes(name), slots)
        rotate = tuple(opened.loop for opened in self.open)
        self.places[name] = _Place(allocation, rotate, self._tile_bytes(name))
        self.builder.tokens(storage.free, slots)
        if name == "acc":
            self.accumulator_depth = len(self.open)

    def _loop(self, planned: PlannedLoop) -> None:
        limit: Limit = M if planned.axis == "m" else self.real[planned.axis]
        with self.builder.loop(limit, planned.step) as loop:
            self.open.append(_OpenLoop(planned, loop))
            self._body(planned.body)
            self.open.pop()

    def _start(self, axis: str) -> Affine:
        """First row, channel or column of the current tile."""
        for opened in self.open:
            if opened.planned.axis == axis:
                return Affine.loop(opened.loop, opened.planned.step)
        return Affine()

    def _extent(self, axis: str) -> Extent:
        """Extent of the current tile, clamped where it may be smaller."""
        real, start = self.real[axis], self._start(axis)
        size = min(self.plan.tile[axis], real)
        if axis == "m":
            return Extent(size, M, start)
        return Extent(size, real, start) if real % size else Extent(size)

    def _address(self, name: str, tile: TileRef) -> Address:
        """Where a tile lies: its slot, and its place among the tiles of the slot."""
        place, numbers = self.places[name], {o.planned.loop: o.loop for o in self.open}
        index = Affine()
        for start, extent, size in zip(tile.starts, tile.extents, tile.shape, strict=True):
            terms = tuple((numbers[loop], c // extent) for loop, c in start.terms)
            index = index * (size // extent) + Affine(start.const // extent, terms)
        return place.allocation.at(place.rotate, index * place.tile_bytes)

    def _clear(self, acc: TileRef) -> Condition:
        """When an MMA has to clear its accumulators: the first one on the way through K."""
        if self.cleared:
            return NEVER
        self.cleared = True
        inside = self.open[self.accumulator_depth :]
        through = [o.loop for o in inside if not any(o.planned.loop in s.loops for s in acc.starts)]
        if len(through) > 1:
            raise CompileError(
                f"{self.op.label}: accumulators are added to in {len(through)} loops"
            )
        return Condition.first(through[0]) if through else ALWAYS

    def _load(self, call: CallNode) -> None:
        """Emit loads of all kinds of tiles that the call fills."""
        for name in filled(call.name, self.op):
            load = STORAGES[name].load
            assert load is not None
            self.builder.emit(load(self._address(name, call.tiles[0]), *self._ranges(name)))

    def _load_dense(self, call: CallNode) -> None:
        lsb, msb = (self._address(name, call.tiles[0]) for name in LOADED[call.name])
        self.builder.emit(LdAct(lsb, msb, *self._ranges("lsb")))

    def _ranges(self, name: str) -> list[Any]:
        """Starts and extents of what is loaded of a kind of tiles."""
        axes = STORAGES[name].axes
        return [value for axis in axes for value in (self._start(axis), self._extent(axis))]

    def _mma(self, call: CallNode) -> None:
        """Emit the pass over the LSB or the MSB plane."""
        acc, plane, weights, *scales = call.tiles
        msb = self._address("msb" if call.name == "mma_msb" else "lsb", plane)
        make: Callable[..., Instruction] = MmaLsb
        if call.name == "mma_msb":
            make = MmaDns
            if self.op.scheme == "sparqle":
                zeros = self._address("zro", plane) if self.op.row_centres else None
                make = partial(MmaMsb, pbm=self._address("pbm", plane), zro=zeros)
        name = "lsb" if call.name == "mma_lsb" else "msb"
        instruction = make(
            **{name: msb},
            acc=self._address("acc", acc),
            wgt=self._address("wgt", weights),
            grp=self._address("grp", scales[0]) if scales else None,
            **self._extents(),
            zero=self._clear(acc),
            row_split=call.annotations.get(ROW_SPLIT_ATTR, 1),
        )
        self.builder.emit(instruction)

    def _extents(self) -> dict[str, Extent]:
        return {axis: self._extent(axis) for axis in "mnk"}

    def _mma_min(self, call: CallNode) -> None:
        acc, sums, minima = call.tiles
        self.builder.emit(
            MmaMin(
                self._address("acc", acc),
                self._address("sum", sums),
                self._address("grp", minima),
                **self._extents(),
                zero=self._clear(acc),
            )
        )

    def _drain(self, call: CallNode) -> None:
        vectors = {
            self.plan.names[tile.buffer][0]: tile
            for tile in call.tiles
            if len(tile.shape) == 1 and not tile.dram
        }
        row, chn = (
            self._address(name, vectors[name]) if name in vectors else None
            for name in ("row", "chn")
        )
        acc = self._address("acc", call.tiles[0])
        self.rows = vectors.get("row")
        self.builder.emit(Drain(acc, row, chn, self._extent("m"), self._extent("n")))

    def _store(self, call: CallNode) -> None:
        ranges = (self._start("m"), self._extent("m"), self._start("n"), self._extent("n"))
        order = None
        if self.op.block_rows:
            if self.rows is None:
                raise CompileError(f"{self.op.label}: outputs are stored before they are drained")
            order = self._address("row", self.rows)
        acc = self._address("acc", call.tiles[1])
        encoded = self.op.output == "encoded"
        self.builder.emit(StEnc(acc, *ranges) if encoded else StOut(acc, *ranges, order))


_EMITTERS: Mapping[str, Callable[[_Generator, CallNode], None]] = MappingProxyType(
    {
        **dict.fromkeys(LOADED, _Generator._load),
        "ld_act": _Generator._load_dense,
        "mma_lsb": _Generator._mma,
        "mma_msb": _Generator._mma,
        "mma_min": _Generator._mma_min,
        "drain": _Generator._drain,
        "store": _Generator._store,
    }
)
