"""Which loops, buffers and tokens a lowered function needs: the part of code generation that looks.

Every loop of a split dense op walks along one axis: rows (m), output channels (n) or columns of K
(k); weight groups are counted as columns. `make_plan` finds the axis and the step of every loop
from the arrays that it indexes, which kinds of tiles (`target.isa.buffers`) live in which
loop body, and where the engines have to wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.lowered import Body, CallNode, LoopNode, TileRef, calls_of
from sparqle_tvm.target.compile.schedule import SLOTS_ATTR
from sparqle_tvm.target.isa.buffers import LOADED, STORAGES, filled
from sparqle_tvm.target.isa.header import Queue
from sparqle_tvm.target.op import DenseOp

_MMA = ("zero", "mma_lsb", "mma_msb", "mma_min")


@dataclass(frozen=True)
class Step:
    """A call or loop, what its engines wait for before, and what they signal after it."""

    child: CallNode | PlannedLoop
    waits: tuple[Queue, ...]
    signals: tuple[Queue, ...]


@dataclass(frozen=True)
class PlannedBody:
    """Steps in order, and the kinds of tiles that live just for them."""

    storages: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class PlannedLoop:
    """A loop along an axis ("m", "n" or "k"), `step` rows, channels or columns at a time."""

    loop: int
    axis: str
    step: int
    body: PlannedBody


@dataclass
class Plan:
    """What `make_plan` finds out.

    Attributes
    ----------
    tile : dict of int
        Extent of a tile along each axis.
    grids : dict of tuple of int
        Tiles in a slot, per dimension, for each kind of tile.
    slots : dict of int
        Slots of each kind of tile.
    names : dict of tuple of str
        Kinds of tiles that each on-chip array of the function is.
    body : PlannedBody
        The statements of the function.
    """

    tile: dict[str, int] = field(default_factory=dict)
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    body: PlannedBody = field(default_factory=lambda: PlannedBody((), ()))


def make_plan(body: Body, op: DenseOp) -> Plan:
    """Find loops, buffers and tokens of a lowered function.

    Raises
    ------
    CompileError
        If the function is no split dense op in tiles, or loads something at two places.
    """
    return _Planner(body, op).run(body)


class _Planner:
    """Collects facts over all calls first, then plans body by body."""

    def __init__(self, body: Body, op: DenseOp) -> None:
        self.op = op
        self.real = {"m": op.m, "n": op.n, "k": op.k}
        self.plan = Plan()
        self.loops: dict[int, tuple[str, int]] = {}
        self.wanted: dict[str, int] = {}
        calls = list(body.calls())
        self._check_calls(calls)
        self.silent = {"zero", "ld_min"}
        present = {call.name for call in calls}
        for loads in _TOGETHER:
            self.silent.update([name for name in loads if name in present][1:])
        for call in calls:
            self._learn_axes(call)
            self._learn_storages(call)

    def run(self, body: Body) -> Plan:
        """Plan the function."""
        self.plan.body = self._body(body, ())
        missing = {name for names in self.plan.names.values() for name in names} - set(
            self.plan.slots
        )
        if missing:
            raise CompileError(f"{sorted(missing)[0]!r} tiles are used, but not allocated on chip")
        return self.plan

    def _check_calls(self, calls: list[CallNode]) -> None:
        names = [call.name for call in calls if call.name != "zero"]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise CompileError(
                f"intrinsic {sorted(twice)[0]!r} stands at two places of the function; a program "
                "has one place for each"
            )
        zeroed: set[int] = set()
        for call in calls:
            if call.name == "zero":
                zeroed.add(call.tiles[0].buffer)
            elif call.name in _MMA and call.tiles[0].buffer not in zeroed:
                raise CompileError(
                    f"{call.name!r} adds to accumulators that were not cleared; decompose the "
                    "reduction at the loop over K chunks"
                )

    def _axes(self, call: CallNode) -> Iterator[tuple[TileRef, str]]:
        """Operands of a call with the axes of their dimensions; "g": weight groups."""
        if call.name != "drain":
            yield from zip(call.tiles, _AXES[call.name], strict=False)
            return
        # The scales of encoded outputs and of their sums' grid lie in registers, without an axis.
        for tile in (tile for tile in call.tiles if not tile.dram):
            rows = self.plan.names.get(tile.buffer) == LOADED["ld_row"]
            yield tile, "mn" if len(tile.shape) == 2 else ("m" if rows else "n")

    def _learn_axes(self, call: CallNode) -> None:
        for tile, axes in self._axes(call):
            for start, extent, axis in zip(tile.starts, tile.extents, axes, strict=True):
                factor = self.op.group_size if axis == "g" else 1
                axis = "k" if axis == "g" else axis
                if self.plan.tile.setdefault(axis, extent * factor) != extent * factor:
                    raise CompileError(
                        f"{call.name!r} works on {extent * factor} along {axis}, others on "
                        f"{self.plan.tile[axis]}; tiles of all intrinsics have to agree"
                    )
                for loop, coefficient in start.terms:
                    found = (axis, coefficient * factor)
                    if self.loops.setdefault(loop, found) != found:
                        raise CompileError(
                            f"loop {loop} steps by {found} in {call.name!r}, by "
                            f"{self.loops[loop]} elsewhere; a loop walks along one axis"
                        )

    def _learn_storages(self, call: CallNode) -> None:
        for tile in call.tiles:
            if tile.dram:
                continue
            if call.name in LOADED:
                names = filled(call.name, self.op)
            elif tile.buffer in self.plan.names:
                continue
            else:
                names = ("acc",)
            self.plan.names[tile.buffer] = names
            self._learn_slots(call, names)
            if any(size % extent for size, extent in zip(tile.shape, tile.extents, strict=True)):
                raise CompileError(f"{tile.name} of {tile.shape} is not made of {tile.extents}")
            grid = tuple(s // e for s, e in zip(tile.shape, tile.extents, strict=True))
            for name in names:
                if self.plan.grids.setdefault(name, grid) != grid:
                    raise CompileError(f"{tile.name}: tiles of {name!r} differ in how many live")

    def _learn_slots(self, call: CallNode, names: tuple[str, ...]) -> None:
        if SLOTS_ATTR not in call.annotations:
            return
        slots = call.annotations[SLOTS_ATTR]
        if slots < 1:
            raise CompileError(f"{call.name!r} asks for {slots} slots; it needs at least one")
        for name in names:
            members = {n for n, storage in STORAGES.items() if storage.free == STORAGES[name].free}
            self.wanted.update({n: min(slots, self.wanted.get(n, slots)) for n in members})

    def _body(self, body: Body, path: tuple[LoopNode, ...]) -> PlannedBody:
        names = {name for number in body.allocations for name in self.plan.names.get(number, ())}
        storages = tuple(name for name in STORAGES if name in names)
        for name in storages:
            if name in self.plan.slots:
                raise CompileError(f"tiles of {name!r} live in two loops; load them at one place")
            # Without a loop around there is nothing to overlap with.
            self.plan.slots[name] = self.wanted.get(name, 1) if path else 1
        children = self._ordered(body)
        waits, signals = self._tokens(children, storages)
        steps = []
        for index, child in enumerate(children):
            planned = child if isinstance(child, CallNode) else self._loop(child, path)
            if isinstance(child, CallNode):
                self._check_starts(child, path)
            steps.append(Step(planned, tuple(waits[index]), tuple(signals[index])))
        return PlannedBody(storages, tuple(steps))

    def _loop(self, node: LoopNode, path: tuple[LoopNode, ...]) -> PlannedLoop:
        if node.loop not in self.loops:
            raise CompileError(f"loop {node.loop} of {node.extent} iterations indexes nothing")
        axis, step = self.loops[node.loop]
        if any(self.loops[outer.loop][0] == axis for outer in path):
            raise CompileError(f"axis {axis} is tiled by two nested loops; use one")
        if step != self.plan.tile[axis] or -(-self.real[axis] // step) != node.extent:
            raise CompileError(
                f"a loop of {node.extent} steps of {step} does not walk along {axis} "
                f"({self.real[axis]}) in tiles of {self.plan.tile[axis]}"
            )
        return PlannedLoop(node.loop, axis, step, self._body(node.body, (*path, node)))

    def _check_starts(self, call: CallNode, path: tuple[LoopNode, ...]) -> None:
        """Arrays in DRAM have to be used where the loops around stand, others in whole tiles."""
        for tile, axes in self._axes(call):
            for start, extent in zip(tile.starts, tile.extents, strict=True):
                if start.const % extent or any(c % extent for _, c in start.terms):
                    raise CompileError(
                        f"{call.name!r} takes {tile.name} from {start}, within a tile of {extent}"
                    )
            for start, axis in zip(tile.starts, axes, strict=True):
                axis = "k" if axis == "g" else axis
                around = {node.loop for node in path if self.loops[node.loop][0] == axis}
                if tile.dram and (start.const or set(start.loops) != around):
                    raise CompileError(
                        f"{call.name!r} takes {tile.name} from {start} on along {axis}, the loops "
                        "around it stand elsewhere"
                    )

    def _ordered(self, body: Body) -> list[CallNode | LoopNode]:
        """Children that emit something, with loads that share tokens moved to the first of them.

        Loops over such loads become one, so that what belongs to a tile is loaded together.
        """
        children = [child for child in map(self._audible, body.children) if child is not None]
        first: dict[Queue, int] = {}
        keys = []
        for index, child in enumerate(children):
            queues = {queue for call in calls_of(child) if (queue := _load_queue(call)) is not None}
            loads_only = all(call.name in LOADED for call in calls_of(child))
            place = index
            if loads_only and len(queues) == 1:
                place = first.setdefault(queues.pop(), index)
            keys.append((place, index))
        ordered: list[CallNode | LoopNode] = []
        for _, index in sorted(keys):
            child = children[index]
            if ordered and (merged := self._merged(ordered[-1], child)) is not None:
                ordered[-1] = merged
            else:
                ordered.append(child)
        return ordered

    def _merged(self, first: CallNode | LoopNode, second: CallNode | LoopNode) -> LoopNode | None:
        """One loop for two that load what shares tokens, along the same axis; None otherwise."""
        if isinstance(first, CallNode) or isinstance(second, CallNode):
            return None
        queues = {_load_queue(call) for loop in (first, second) for call in calls_of(loop)}
        same = (first.extent, self.loops[first.loop]) == (second.extent, self.loops[second.loop])
        flat = all(isinstance(c, CallNode) for c in (*first.body.children, *second.body.children))
        if len(queues) != 1 or None in queues or not (same and flat):
            return None
        calls = [call.in_loop(first.loop, second.loop) for call in second.body.calls()]
        body = Body([*first.body.children, *calls], first.body.allocations)
        body.allocations.extend(second.body.allocations)
        return LoopNode(first.loop, first.extent, body)

    def _audible(self, child: CallNode | LoopNode) -> CallNode | LoopNode | None:
        """The child without calls that become part of another instruction; None if empty."""
        if isinstance(child, CallNode):
            return None if child.name in self.silent else child
        inner = [found for found in map(self._audible, child.body.children) if found is not None]
        if not inner:
            return None
        return LoopNode(child.loop, child.extent, Body(inner, child.body.allocations))

    def _tokens(
        self, children: list[CallNode | LoopNode], storages: tuple[str, ...]
    ) -> tuple[list[list[Queue]], list[list[Queue]]]:
        """What to wait for before, and signal after, each child for the tiles that live here."""
        waits: list[list[Queue]] = [[] for _ in children]
        signals: list[list[Queue]] = [[] for _ in children]
        queues = {STORAGES[name].free: STORAGES[name].ready for name in storages}
        for free, ready in queues.items():
            members = {name for name in storages if STORAGES[name].free == free}
            uses = [self._uses(child, members) for child in children]
            writers = [index for index, (writes, _) in enumerate(uses) if writes]
            readers = [index for index, (_, reads) in enumerate(uses) if reads]
            if not writers or not readers or writers[-1] >= readers[0]:
                raise CompileError(
                    f"tiles of {sorted(members)} are not written first and then read in the loop "
                    "that they live in"
                )
            waits[writers[0]].append(free)
            signals[writers[-1]].append(ready)
            waits[readers[0]].append(ready)
            signals[readers[-1]].append(free)
        return waits, signals

    def _uses(self, child: CallNode | LoopNode, members: set[str]) -> tuple[bool, bool]:
        """Whether a child writes and whether it reads tiles of these kinds."""
        writes = reads = False
        for call in calls_of(child):
            kinds = [self.plan.names.get(tile.buffer, ()) for tile in call.tiles]
            if call.name == "store" and self.op.block_rows:
                # Row numbers come with the row parameters; no array of the function shows them.
                kinds.append(("row",))
            if not any(members.intersection(names) for names in kinds):
                continue
            # Accumulators belong to MMA until they are complete, then to STORE.
            fills = call.name in _MMA if "acc" in members else call.name in LOADED
            writes, reads = writes or fills, reads or not fills
        return writes, reads


def _load_queue(call: CallNode) -> Queue | None:
    return STORAGES[LOADED[call.name][0]].free if call.name in LOADED else None


_TOGETHER = (("ld_row", "ld_zero"), ("ld_channel", "ld_offset", "ld_wsum", "ld_bias"))
"""Loads that one instruction does: that of the first of them which a function has."""

_AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ld_lsb", "ld_msb", "ld_act"), ("mk", "mk")),
    **dict.fromkeys(("ld_scale", "ld_min"), ("ng", "ng")),
    **dict.fromkeys(("ld_channel", "ld_offset", "ld_wsum", "ld_bias"), ("n", "n")),
    **dict.fromkeys(("mma_lsb", "mma_msb"), ("mn", "mk", "nk", "ng")),
    "ld_sums": ("mg", "mg"),
    **dict.fromkeys(("ld_row", "ld_zero"), ("m", "m")),
    "ld_wgt": ("nk", "nk"),
    "mma_min": ("mn", "mg", "ng"),
    "zero": ("mn",),
    "store": ("mn", "mn"),
}
