"""The verifier of attention programs: refused unless every output is made of just its keys.

As `sparqle_tvm.target.verify.verify`, it looks at every step of the expanded program and checks
bounds, tokens, and that no two accesses of the same bytes, one of them a write, are left open by
tokens. Then it keeps, step by step, which tiles lie on chip:

- what an instruction reads is the tile that it names (of its block, its chunk), as it was made and
  not overwritten since; of keys and values that stay it may take the first ones only;
- scores are made by both passes, each once, of all keys that the block sees, before they become
  probabilities;
- both passes of all chunks are added to outputs, each once, before those are drained, once, with
  the scales of the same rows, and stored; each block is stored exactly once.

So a program that passes computes every output exactly once, in every timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa import attention as isa
from sparqle_tvm.target.isa.access import Access, Mode, Tile
from sparqle_tvm.target.isa.attention_header import SCALE_BYTES, AttentionHeader
from sparqle_tvm.target.isa.base import Kind, Pass
from sparqle_tvm.target.isa.operands import BLOCKS, Buffer
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import BoundProgram, Operands
from sparqle_tvm.target.verify.bounds import check_bounds
from sparqle_tvm.target.verify.order import find_order

_SAMPLE_BLOCKS = 256
_PASSES = {Pass.LSB, Pass.MSB}

Place = tuple[int, int]


def verify_attention(
    program: Program[AttentionHeader], rows: int | None = None, past: int = 0
) -> None:
    """Refuse a program that does not compute its op.

    Parameters
    ----------
    program : Program
        The program.
    rows, past : int, optional
        Tokens, and tokens before them. None: the fewest and the most of both, and the first edges
        of blocks. What runs with other sizes is verified for them.

    Raises
    ------
    ProgramError
        Names the instruction (index and text), the step, and what is wrong.
    """
    for sizes in [(rows, past)] if rows is not None else sample_sizes(program.header):
        _Verifier(BoundProgram(program, *sizes)).run()


def sample_sizes(header: AttentionHeader) -> list[tuple[int, int]]:
    """Sizes (rows, past) that `verify_attention` looks at."""
    op = header.op
    edge = header.block_rows // op.group
    wanted = {1, edge, edge + 1, 2 * edge + 1}
    if op.kv_heads * header.head_blocks(op.rows) <= _SAMPLE_BLOCKS:
        wanted.add(op.rows)
    rows = sorted(m for m in wanted if 1 <= m <= op.rows)
    return sorted({(m, past) for m in rows for past in (0, op.keys - m)})


@dataclass
class _Entry:
    """What lies in bytes [low, high) of a buffer; `tile` None: a rest that means nothing.

    `place`: first row (or key) and how many; `part`: those of the other axis of scores. `block`
    is set of values that are those of live keys only. `done`: passes (and chunks) added so far.
    """

    low: int
    high: int
    tile: Tile | None
    place: Place
    part: Place
    block: int
    step: int
    engine: int
    clock: int
    done: set[Any] = field(default_factory=set)
    readers: dict[int, Place] = field(default_factory=dict)
    drained: bool = False
    stored: bool = False


class _Verifier:
    """Checks one run."""

    def __init__(self, bound: BoundProgram[AttentionHeader]) -> None:
        self.bound, self.header = bound, bound.header
        self.entries: dict[Buffer, list[_Entry]] = {buffer: [] for buffer in Buffer}
        self.stored: dict[int, int] = {}
        # Of the step that is looked at.
        self.step, self.engine, self.clock = 0, 0, 0
        self.clocks: list[int] = []

    def run(self) -> None:
        """Check everything."""
        bound = self.bound
        for operands in bound.classes:
            check_bounds(bound, operands)
        steps = len(bound)
        kinds = np.full(steps, Kind.PLAIN, dtype=np.int32)
        touches: list[tuple[Operands, int] | None] = [None] * steps
        for operands in bound.classes:
            kinds[operands.index] = operands.cls.KIND
            if operands.cls.KIND in (Kind.WAIT, Kind.SIGNAL):
                continue
            for number, step in enumerate(operands.index.tolist()):
                touches[step] = (operands, number)
        order, clocks = find_order(bound, kinds, np.maximum(bound.queues, 0).astype(np.int32))
        ranges = {operands.cls: list(_ranges(self.header, operands)) for operands in bound.classes}
        numbers = {operands.cls: _columns(operands) for operands in bound.classes}
        engines = bound.engines.tolist()
        for step in order.tolist():
            found = touches[step]
            if found is None:
                continue
            operands, number = found
            self.step, self.engine, self.clocks = step, engines[step], clocks[step].tolist()
            self.clock = self.clocks[self.engine]
            values = {name: column[number] for name, column in numbers[operands.cls].items()}
            for access, low, high in ranges[operands.cls]:
                self._touch(operands.cls, access, low[number], high[number], values)
        missing = set(range(bound.limits[BLOCKS])) - set(self.stored)
        if missing:
            raise ProgramError(
                f"program {self.header.label!r}, M = {bound.rows}: block {min(missing)} is never "
                "stored"
            )

    def _fail(self, access: Access, problem: str, other: int = -1) -> None:
        name = self.bound.name(other) if other >= 0 else "an earlier instruction"
        raise self.bound.error(self.step, f"{access.operand}: " + problem.format(other=name))

    def _touch(
        self, cls: type, access: Access, low: int, high: int, values: Mapping[str, int]
    ) -> None:
        tile = access.tile
        begins = cls is isa.MmaPvLsb and tile is isa.OUTPUTS and values["chunk"] == 0
        if access.mode == Mode.WRITE or begins:
            entry = self._write(access, low, high, values)
        elif tile in (isa.SCORES, isa.SCALES) and "chunk" not in values:
            self._read_chunks(access, low, values)
            return
        else:
            entry = self._use(access, low, high, values)
        if tile in _CHECKS:
            _CHECKS[tile](self, cls, access, entry, values)

    # Tiles.

    def _overlaps(self, buffer: Buffer, low: int, high: int) -> list[_Entry]:
        return [e for e in self.entries[buffer] if e.low < high and low < e.high]

    def _check_writer(self, access: Access, e: _Entry, problem: str) -> None:
        if self.clocks[e.engine] < e.clock:
            self._fail(access, problem, e.step)

    def _check_readers(self, access: Access, e: _Entry) -> None:
        for engine, (clock, step) in e.readers.items():
            if self.clocks[engine] < clock:
                self._fail(
                    access, "no token orders this write with {other}, which reads there", step
                )

    def _write(self, access: Access, low: int, high: int, values: Mapping[str, int]) -> _Entry:
        """Make a tile; what it covers is gone, of what it covers partly a rest remains."""
        entries = self.entries[access.tile.buffer]
        for e in self._overlaps(access.tile.buffer, low, high):
            self._check_writer(
                access, e, "no token orders this write with {other}, which writes there"
            )
            self._check_readers(access, e)
            if e.tile is isa.OUTPUTS and not e.stored:
                self._fail(access, "overwrites outputs that were not stored, of {other}", e.step)
            entries.remove(e)
            for first, last in ((e.low, low), (high, e.high)):
                if first < last:
                    rest = _Entry(
                        *(first, last, None, (-1, 0), (-1, 0), -1, e.step, e.engine, e.clock),
                        readers=dict(e.readers),
                    )
                    entries.append(rest)
        place = (values[access.row], values[access.rows])
        part = (values[access.col], values[access.cols]) if access.col else (-1, 0)
        entry = _Entry(
            *(low, high, access.tile, place, part, values["block"]),
            *(self.step, self.engine, self.clock),
        )
        entries.append(entry)
        return entry

    def _use(self, access: Access, low: int, high: int, values: Mapping[str, int]) -> _Entry:
        """Find the tile that a step names, to read or to change it."""
        found = self._find(access, low, high)
        e = found[0]
        if e.tile is not access.tile or not self._is_place(access, e, low, values):
            self._fail(access, "that is not what lies there: see {other}", e.step)
        self._note(access, e)
        return e

    def _note(self, access: Access, e: _Entry) -> None:
        """What made the tile must be done; if it is changed, what reads it too."""
        self._check_writer(
            access, e, "no token orders this access with {other}, which writes there"
        )
        if access.mode == Mode.READ:
            e.readers[self.engine] = (self.clock, self.step)
            return
        self._check_readers(access, e)
        e.step, e.engine, e.clock = self.step, self.engine, self.clock

    def _find(self, access: Access, low: int, high: int) -> list[_Entry]:
        """The one entry that has all of these bytes."""
        found = self._overlaps(access.tile.buffer, low, high)
        if not found:
            self._fail(access, "nothing was written there before")
        if len(found) > 1 or found[0].low > low or found[0].high < high:
            self._fail(access, "that is not what lies there: see {other}", found[-1].step)
        return found

    def _is_place(self, access: Access, e: _Entry, low: int, values: Mapping[str, int]) -> bool:
        row, rows = values[access.row], values[access.rows]
        tile = access.tile
        if tile is isa.PROBABILITIES:
            offset = values["chunk"] * self.header.probability_bytes
            return e.place == (row, rows) and e.low + offset == low
        if tile in (isa.KEYS, isa.VALUES):
            gathered = tile is isa.VALUES and self.header.sparse and not self.header.stays
            same = e.low == low and e.place[0] == row and e.place[1] >= rows
            return same and (not gathered or e.block == values["block"])
        part = (values[access.col], values[access.cols]) if access.col else (-1, 0)
        return e.low == low and (e.place, e.part) == ((row, rows), part)

    def _read_chunks(self, access: Access, low: int, values: Mapping[str, int]) -> None:
        """All chunks of a block's scores, or of the scales of its keys."""
        chunk, total = self.header.key_chunk, values["total"]
        scores = access.tile is isa.SCORES
        pitch = self.header.scores_bytes if scores else SCALE_BYTES * chunk
        key_bytes = 4 * values["rows"] if scores else SCALE_BYTES
        for number, begin in enumerate(range(0, total, chunk)):
            count, at = min(chunk, total - begin), low + number * pitch
            (e,) = self._find(access, at, at + count * key_bytes)
            keys = (values["key"] + begin, count)
            if scores:
                same = (e.place, e.part) == ((values["row"], values["rows"]), keys)
                if same and e.done != _PASSES:
                    self._fail(access, "not both passes made the scores of {other}", e.step)
            else:
                same = e.place[0] == keys[0] and e.place[1] >= count
            if e.tile is not access.tile or e.low != at or not same:
                self._fail(access, "that is not what lies there: see {other}", e.step)
            self._note(access, e)

    # What holds for some kinds of tiles.

    def _check_scores(
        self, cls: Any, access: Access, entry: _Entry, values: Mapping[str, int]
    ) -> None:
        if cls.PASS in entry.done:
            self._fail(access, "this pass was added before")
        entry.done.add(cls.PASS)

    def _check_outputs(
        self, cls: Any, access: Access, entry: _Entry, values: Mapping[str, int]
    ) -> None:
        if cls.KIND == Kind.MMA:
            added = (cls.PASS, values["chunk"])
            if added in entry.done or entry.drained:
                self._fail(access, "this pass over the chunk was added before, or they are drained")
            entry.done.add(added)
        elif cls.KIND == Kind.DRAIN:
            chunks = -(-values["total"] // self.header.key_chunk)
            if entry.drained or len(entry.done) != len(_PASSES) * chunks:
                self._fail(access, "outputs are drained once, after both passes over all chunks")
            entry.drained = True
        else:
            if not entry.drained:
                self._fail(access, "outputs are stored after they were drained")
            if values["block"] in self.stored:
                self._fail(
                    access, "this block was stored before, by {other}", self.stored[values["block"]]
                )
            self.stored[values["block"]] = self.step
            entry.stored = True


_CHECKS: Mapping[Tile, Callable[..., None]] = {
    isa.SCORES: _Verifier._check_scores,
    isa.OUTPUTS: _Verifier._check_outputs,
}


def _ranges(
    header: AttentionHeader, operands: Operands
) -> Iterator[tuple[Access, list[int], list[int]]]:
    """Bytes that every step of a class touches, by access; what is read comes first."""
    for access in sorted(operands.cls.accesses(header), key=lambda a: a.mode != Mode.READ):
        low = operands[access.operand]
        high = low + access.nbytes(header, operands)
        yield access, low.tolist(), np.broadcast_to(high, low.shape).tolist()


def _columns(operands: Operands) -> dict[str, list[int]]:
    return {name: operands[name].tolist() for name in operands.cls.TRACE}
