"""The kernel that keeps, step by step, the tiles that lie in each buffer.

Steps come in an order that respects engines and tokens. As no two accesses that conflict are
unordered (that is one of the checks), what is found for this order holds for every other timing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.target.isa.access import Mode
from sparqle_tvm.target.isa.base import Kind, Pass
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.verify.touches import Tag, TouchColumn
from sparqle_tvm.tirscript import (
    Scalar,
    all_of,
    any_of,
    cast,
    either,
    function,
    loop,
    parameter,
    repeat,
    scratch,
    size,
    when,
)

TABLE_ENTRIES = 512
"""Tiles (and what is left of overwritten ones) that a buffer may hold at a time."""

_ENGINES = len(Engine)
_BUFFERS = len(Buffer)
_TOUCH = len(TouchColumn)
MODE, BUFFER, LO, HI, TAG, ROW, ROWS, COL, COLS, AXIS, DIVISIBLE = (
    int(column) for column in TouchColumn
)

# A table entry: the touch that made it; who wrote it last and who of each engine read it last, as
# clock of the engine and as step; for accumulators the state and the chunks covered by each pass.
_W_ENGINE = _TOUCH
_W_CLOCK, _W_STEP = _W_ENGINE + 1, _W_ENGINE + 2
_R_CLOCK = _W_STEP + 1
_R_STEP = _R_CLOCK + _ENGINES
_STATE = _R_STEP + _ENGINES
_CHUNKS = _STATE + 1
_ENTRY = _CHUNKS + 2 * len(Pass)
_SHARE = TABLE_ENTRIES * _ENTRY


class Fault(IntEnum):
    """What `check_tiles` finds, and what is said of it."""

    text: str

    def __new__(cls, number: int, text: str = "") -> Fault:
        """A fault, found by its number."""
        fault = int.__new__(cls, number)
        fault._value_, fault.text = number, text
        return fault

    NONE = 0
    NOT_WRITTEN = 1, "nothing was written there before"
    WRONG_TILE = 2, "that is not what lies there: see {other}"
    EARLY_READ = 3, "no token orders this access with {other}, which writes there"
    EARLY_WRITE = 4, "no token orders this write with {other}, which reads there"
    UNORDERED_WRITE = 5, "no token orders this write with {other}, which writes there"
    LOST = 6, "overwrites accumulators that were not stored, of {other}"
    ROWS_DIFFER = 7, "other rows than those of its other operands, see {other}"
    CHANNELS_DIFFER = 8, "other channels than those of its other operands, see {other}"
    COLUMNS_DIFFER = 9, "another K chunk than that of its other operands, see {other}"
    COVERED = 10, "its K chunk was added before, or is no neighbour of those that were"
    INCOMPLETE = 11, "not all K chunks were added by each pass"
    STATE = 12, "accumulators are drained once, after all MMAs, and stored after that"
    WRONG_PLACE = 13, "outputs of other rows or channels lie there"
    STORED_TWICE = 14, "these outputs were stored before"
    FULL = 15, "too many tiles in the buffer at a time"


class _State(IntEnum):
    ADDING = 0
    DRAINED = 1
    STORED = 2


def new_table() -> NDArray[np.int64]:
    """Memory for the tiles of all buffers."""
    return np.zeros(_BUFFERS * _SHARE, dtype=np.int64)


class _Checker:
    """Writes the kernel ``check_tiles``.

    Its parameters: `kinds`, `engines` and `args` of all steps (`args` is the pass of an MMA and,
    for a store, its row in `stores`); `order` and `clocks` from ``schedule``; the touches of step
    s are ``firsts[s]`` to ``firsts[s + 1]``; `stores` has first and last row and column of each
    store in `outs`, the map of the outputs stored so far; `needs` has columns of a K chunk,
    number of K chunks, and for each pass whether the op needs it. It writes `result`: fault,
    step, touch, other step.
    """

    def __init__(self) -> None:
        steps = size("steps")
        self.kinds = parameter("kinds", "int32", steps, align=0)
        self.engines = parameter("engines", "int32", steps, align=0)
        self.args = parameter("args", "int32", steps, align=0)
        self.order = parameter("order", "int32", steps, align=0)
        self.clocks = parameter("clocks", "int32", steps, _ENGINES, align=0)
        self.firsts = parameter("firsts", "int32", size("first_count"), align=0)
        self.touches = parameter("touches", "int64", size("touch_count"), align=0)
        self.stores = parameter("stores", "int32", size("store_count"), 4, align=0)
        self.outs = parameter("outs", "int8", size("out_rows"), size("out_columns"), align=0)
        self.table = parameter("table", "int64", _BUFFERS * _SHARE, align=0)
        self.needs = parameter("needs", "int64", 2 + len(Pass), align=0)
        self.result = parameter("result", "int64", 4, align=0)
        # Where the entries of each buffer end.
        self.ends = scratch("int64", _BUFFERS)
        self.fault, self.other = Scalar("int64", 0), Scalar("int64", -1)
        self.step, self.kind = Scalar("int32", 0), Scalar("int32", 0)
        self.engine, self.clock = Scalar("int32", 0), Scalar("int32", 0)
        # Rows, channels and columns that the operands of a step have in common; -1: not known.
        self.row, self.channel, self.column = (Scalar("int64", -1) for _ in range(3))
        # The touch, and in its buffer: first entry, end of the entries, entry looked at, found.
        self.touch, self.first = Scalar("int32", 0), Scalar("int64", 0)
        self.end, self.entry, self.found = (Scalar("int64", 0) for _ in range(3))

    def write(self) -> None:
        """Walk the steps until the first fault."""
        for b in range(_BUFFERS):
            self.ends[b] = b * _SHARE
        at = Scalar("int64", 0)
        steps = self.order.buffer.ty.shape[0]
        with repeat(self._fine, at.value < steps):
            self.step.set(self.order[at.value])
            self.kind.set(self.kinds[self.step.value])
            self.engine.set(self.engines[self.step.value])
            self.clock.set(self.clocks[self.step.value, self.engine.value])
            for common in (self.row, self.channel, self.column):
                common.set(-1)
            self.touch.set(self.firsts[self.step.value])
            last = self.firsts[self.step.value + 1]
            with repeat(self._fine, self.touch.value < last):
                self._touch()
                self.touch.add(1)
            at.add(1)
        self.result[0] = self.fault.value
        self.result[1] = cast("int64", self.step.value)
        self.result[2] = cast("int64", self.touch.value - 1)
        self.result[3] = self.other.value

    @property
    def _fine(self) -> Any:
        return self.fault.value == 0

    def _is(self, kind: Kind) -> Any:
        return self.kind.value == int(kind)

    def _get(self, column: int) -> Any:
        """Column of the touch."""
        return self.touches[cast("int64", self.touch.value) * _TOUCH + column]

    def _fail(self, fault: Fault, other: Any = -1) -> None:
        self.fault.set(int(fault))
        self.other.set(other)

    def _fail_if(self, condition: Any, fault: Fault, other: Any = -1) -> None:
        with when(condition):
            self._fail(fault, other)

    def _touch(self) -> None:
        self.first.set(self._get(BUFFER) * _SHARE)
        self.end.set(self.ends[self._get(BUFFER)])
        either(self._get(MODE) == int(Mode.WRITE), self._write_tile, self._use_tile)
        self.ends[self._get(BUFFER)] = self.end.value
        with when(self._fine, self._get(TAG) == int(Tag.ACC)):
            self._check_accumulators()

    # Writing a tile.

    def _write_tile(self) -> None:
        self._each_overlap(self._yield_bytes)
        full = self.end.value >= self.first.value + _SHARE
        self._fail_if(all_of(self._fine, full), Fault.FULL)
        with when(self._fine):
            self._add_entry()

    def _each_overlap(self, visit: Callable[[], None]) -> None:
        """Visit the entries that share bytes with the touch, as long as there is no fault."""
        self.entry.set(self.first.value)
        with repeat(self._fine, self.entry.value < self.end.value):
            e = self.entry.value
            with when(self._get(LO) < self.table[e + HI], self._get(HI) > self.table[e + LO]):
                visit()
            self.entry.add(_ENTRY)

    def _yield_bytes(self) -> None:
        """The entry gives its bytes to the touch. What is left of it is dead."""
        e = self.entry.value
        self._check_done(e)
        # As they are here: the entry changes below.
        before = Scalar("int32", cast("int32", self._get(LO) > self.table[e + LO])).value != 0
        behind = Scalar("int32", cast("int32", self._get(HI) < self.table[e + HI])).value != 0
        self.table[e + TAG] = int(Tag.DEAD)
        with when(before, behind):
            full = self.end.value >= self.first.value + _SHARE
            either(full, lambda: self._fail(Fault.FULL), self._split)
        with when(before, tirx.Not(behind)):
            self.table[e + HI] = self._get(LO)
        with when(tirx.Not(before), behind):
            self.table[e + LO] = self._get(HI)
        with when(tirx.Not(before), tirx.Not(behind)):
            self._drop()

    def _check_done(self, e: Any) -> None:
        """All that touched the entry must be done, and outputs stored."""
        self._check_writer(e, Fault.UNORDERED_WRITE)
        self._check_readers(e)
        lost = all_of(
            self._fine,
            self.table[e + TAG] == int(Tag.ACC),
            self.table[e + _STATE] != int(_State.STORED),
        )
        self._fail_if(lost, Fault.LOST, self.table[e + _W_STEP])

    def _check_writer(self, e: Any, fault: Fault) -> None:
        done = self.clocks[self.step.value, self.table[e + _W_ENGINE]]
        self._fail_if(done < self.table[e + _W_CLOCK], fault, self.table[e + _W_STEP])

    def _check_readers(self, e: Any) -> None:
        for engine in range(_ENGINES):
            done = self.clocks[self.step.value, engine]
            unordered = done < self.table[e + _R_CLOCK + engine]
            self._fail_if(unordered, Fault.EARLY_WRITE, self.table[e + _R_STEP + engine])

    def _split(self) -> None:
        """Keep what is before the touch, and what is behind it as a new entry."""
        e, new = self.entry.value, self.end.value
        with loop(_ENTRY) as f:
            self.table[new + f] = self.table[e + f]
        self.table[new + LO] = self._get(HI)
        self.table[e + HI] = self._get(LO)
        self.end.add(_ENTRY)

    def _drop(self) -> None:
        """Take the entry out: the last one takes its place, and is looked at next."""
        self.end.add(-_ENTRY)
        with loop(_ENTRY) as f:
            self.table[self.entry.value + f] = self.table[self.end.value + f]
        self.entry.add(-_ENTRY)

    def _add_entry(self) -> None:
        """A new entry; what it does not say itself it gets from the operands of the step."""
        self.found.set(self.end.value)
        e = self.found.value
        for column in range(_TOUCH):
            self.table[e + column] = self._get(column)
        with loop(_ENTRY - _TOUCH) as f:
            self.table[e + _TOUCH + f] = 0
        with when(self._get(ROW) < 0):
            self.table[e + ROW] = T.Select(self._get(AXIS) == 0, self.row.value, self.channel.value)
        with when(self._get(COL) < 0):
            accumulators = self._get(TAG) == int(Tag.ACC)
            self.table[e + COL] = T.Select(accumulators, self.channel.value, self.column.value)
        self._note_write(e)
        self.end.add(_ENTRY)

    def _note_write(self, e: Any) -> None:
        self.table[e + _W_ENGINE] = cast("int64", self.engine.value)
        self.table[e + _W_CLOCK] = cast("int64", self.clock.value)
        self.table[e + _W_STEP] = cast("int64", self.step.value)

    # Reading a tile, or changing it in place.

    def _use_tile(self) -> None:
        self._find()
        with when(self._fine):
            self._check_access(self.found.value)
        with when(self._fine, self._get(TAG) != int(Tag.ACC)):
            self._check_operand(self.found.value)

    def _find(self) -> None:
        """Find the entry that holds the touch; entries never share bytes, so there is one."""
        self.found.set(-1)
        near = Scalar("int64", -1)

        def look() -> None:
            near.set(self.entry.value)
            with when(self._holds(self.entry.value)):
                self.found.set(self.entry.value)

        self._each_overlap(look)
        with when(self.found.value < 0):
            self._fail(Fault.NOT_WRITTEN)
            with when(near.value >= 0):
                self._fail(Fault.WRONG_TILE, self.table[near.value + _W_STEP])
                self._check_writer(near.value, Fault.EARLY_READ)

    def _holds(self, e: Any) -> Any:
        """Whether the touch is the entry's tile, or for some tags whole rows of it."""
        whole_rows = T.truncmod(self._get(LO) - self.table[e + LO], self._pitch(e)) == 0
        return all_of(
            self._get(TAG) == self.table[e + TAG],
            self._get(COLS) == self.table[e + COLS],
            self._get(LO) >= self.table[e + LO],
            self._get(HI) <= self.table[e + HI],
            whole_rows,
            any_of(self._get(DIVISIBLE) != 0, self._get(ROWS) == self.table[e + ROWS]),
        )

    def _pitch(self, e: Any) -> Any:
        """Bytes of a row of a tile. Of a dead entry it means nothing, but is not 0."""
        return T.max(
            T.truncdiv(self.table[e + HI] - self.table[e + LO], self.table[e + ROWS]),
            T.int64(1),
        )

    def _check_access(self, e: Any) -> None:
        """What made the entry must be done; if it is changed, what reads it too."""
        self._check_writer(e, Fault.EARLY_READ)
        engine = cast("int64", self.engine.value)

        def read() -> None:
            self.table[e + _R_CLOCK + engine] = cast("int64", self.clock.value)
            self.table[e + _R_STEP + engine] = cast("int64", self.step.value)

        def change() -> None:
            self._check_readers(e)
            self._note_write(e)

        either(self._get(MODE) == int(Mode.READ), read, change)

    def _check_operand(self, e: Any) -> None:
        """Operands have rows in common, or channels, and columns if they are of a K chunk."""
        offset = T.truncdiv(self._get(LO) - self.table[e + LO], self._pitch(e))
        first, other = self.table[e + ROW] + offset, self.table[e + _W_STEP]

        def agree(common: Scalar, value: Any, fault: Fault) -> None:
            differ = all_of(self._fine, common.value >= 0, common.value != value)
            self._fail_if(differ, fault, other)
            common.set(value)

        # Where the instruction says that its tile belongs is as good as an operand.
        with when(self._get(ROW) >= 0):
            agree(self.row, self._get(ROW), Fault.ROWS_DIFFER)
        either(
            self._get(AXIS) == 0,
            lambda: agree(self.row, first, Fault.ROWS_DIFFER),
            lambda: agree(self.channel, first, Fault.CHANNELS_DIFFER),
        )
        with when(self.table[e + COL] >= 0):
            agree(self.column, self.table[e + COL], Fault.COLUMNS_DIFFER)

    # Accumulators and outputs.

    def _check_accumulators(self) -> None:
        e = self.found.value
        other = self.table[e + _W_STEP]
        for common, column, fault in (
            (self.row, ROW, Fault.ROWS_DIFFER),
            (self.channel, COL, Fault.CHANNELS_DIFFER),
        ):
            differ = all_of(common.value >= 0, common.value != self.table[e + column])
            self._fail_if(differ, fault, other)
            common.set(self.table[e + column])
        for kind, check in (
            (Kind.MMA, self._check_chunk),
            (Kind.DRAIN, self._check_drain),
            (Kind.STORE, self._check_store),
        ):
            with when(self._fine, self._is(kind)):
                check(e)

    def _check_chunk(self, e: Any) -> None:
        """The pass goes on to a K chunk beside those that it did."""
        self._fail_if(self.table[e + _STATE] != int(_State.ADDING), Fault.STATE)
        chunk = T.truncdiv(self.column.value, self.needs[0])
        low = e + _CHUNKS + 2 * cast("int64", self.args[self.step.value])

        def begin() -> None:
            self.table[low] = chunk
            self.table[low + 1] = chunk + 1

        def grow() -> None:
            known = Scalar("int64", 0)
            known.set(self.table[low])
            with when(chunk == self.table[low + 1]):
                self.table[low + 1] = chunk + 1
                known.set(-1)
            with when(chunk + 1 == known.value):
                self.table[low] = chunk
                known.set(-1)
            self._fail_if(known.value >= 0, Fault.COVERED)

        either(self.table[low] == self.table[low + 1], begin, grow)

    def _check_drain(self, e: Any) -> None:
        """All passes that the op needs are over all chunks."""
        self._fail_if(self.table[e + _STATE] != int(_State.ADDING), Fault.STATE)
        for p in range(len(Pass)):
            done = self.table[e + _CHUNKS + 2 * p + 1] - self.table[e + _CHUNKS + 2 * p]
            missing = all_of(self._fine, self.needs[2 + p] != 0, done != self.needs[1])
            self._fail_if(missing, Fault.INCOMPLETE)
        self.table[e + _STATE] = int(_State.DRAINED)

    def _check_store(self, e: Any) -> None:
        """Drained outputs go where they belong, and nowhere twice."""
        self._fail_if(self.table[e + _STATE] == int(_State.ADDING), Fault.STATE)
        wrong = any_of(self.table[e + ROW] != self._get(ROW), self.table[e + COL] != self._get(COL))
        self._fail_if(all_of(self._fine, wrong), Fault.WRONG_PLACE, self.table[e + _W_STEP])
        with when(self._fine):
            top, bottom, left, right = (
                self.stores[self.args[self.step.value], edge] for edge in range(4)
            )
            with loop(cast("int64", bottom - top)) as r, loop(cast("int64", right - left)) as c:
                self._fail_if(self.outs[top + r, left + c] != 0, Fault.STORED_TWICE)
                self.outs[top + r, left + c] = 1
        self.table[e + _STATE] = int(_State.STORED)


def check_tiles() -> Any:
    """The kernel ``check_tiles``, see `_Checker`, as a PrimFunc."""
    return function("check_tiles", lambda: _Checker().write())
