"""The search finds what walking through every schedule of the space finds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost import tiling
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.schedule import Decisions, buffer_needs
from sparqle_tvm.target.cost.schedule_space import (
    ScheduleSpace,
    ScheduleTable,
    space_of,
    tile_sizes,
)
from sparqle_tvm.target.cost.tiling import TOLERANCE, Question, choose_schedules, choose_together
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
CRAMPED = replace(
    EDGE,
    name="cramped",
    dram_bytes_per_cycle=2.0,
    activation_buffer_bytes=1 << 15,
    scratchpad=False,
    weight_buffer_bytes=1 << 14,
    accumulator_buffer_bytes=1 << 15,
)
SMALL = replace(
    EDGE,
    name="small",
    activation_buffer_bytes=1 << 14,
    weight_buffer_bytes=1 << 14,
    accumulator_buffer_bytes=1 << 14,
)


def random_ops(seed: int, count: int) -> list[tuple[DenseOp, ...]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        group = int(rng.choice([0, 32]))
        k = 32 * int(rng.integers(1, 12)) if group else int(rng.integers(16, 400))
        rows = int(rng.choice([1, 5, 60, 230]))
        weights = (int(rng.choice([2, 4, 8])), group, bool(group and k % 64))
        n = [int(n) for n in rng.integers(1, 300, int(rng.integers(1, 3)))]
        found.append(tuple(DenseOp(rows, cols, k, *weights) for cols in n))
    return found


def walked(space: ScheduleSpace) -> ScheduleTable:
    """All schedules of an op that fit, every one walked through."""
    table = ScheduleTable(space, np.flatnonzero(np.isfinite(space.bound)))
    tiling._walk([(table, np.arange(len(table.time)))])
    return table


def plain_choice(question: Question) -> tuple[float, list[float]]:
    """Energy of the best schedules of all ops together, and the limits of their times."""
    group = tiling._Group.of(question)
    tables = [walked(space) for space in group.spaces]
    lower = group.counts @ np.stack([space.least for space in group.spaces])
    first = int(np.argmin(lower))
    limits = [(1 + TOLERANCE) * space.least[first] for space in group.spaces]
    energy = least_energy(group, tables, limits)
    if np.isfinite(energy):
        return energy, limits
    # Nothing comes near the bound: the least time counts.
    chunks = range(len(group.chunks))
    times = np.array([[t.time[t.chunk == c].min(initial=np.inf) for c in chunks] for t in tables])
    best = times[:, int(np.argmin(group.counts @ times))]
    limits = [(1 + TOLERANCE) * time for time in best.tolist()]
    return least_energy(group, tables, limits), limits


def least_energy(group: tiling._Group, tables: list[ScheduleTable], limits: list[float]) -> float:
    sums = []
    for chunk in range(len(group.chunks)):
        total = 0.0
        for table, limit, count in zip(tables, limits, group.counts, strict=True):
            table.count_energy(np.inf)
            mine = (table.chunk == chunk) & (table.time <= limit)
            total += count * table.values("energy")[mine].min(initial=np.inf)
        sums.append(total)
    return min(sums)


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@pytest.mark.parametrize("machine", [EDGE, CRAMPED, SMALL], ids=lambda m: m.name)
def test_choice_is_that_of_walking_through_everything(machine: Accelerator, scheme: Scheme) -> None:
    for ops in random_ops(7, 6):
        question, _ = Question(ops, machine, scheme).plain()
        energy, limits = plain_choice(question)
        group = tiling._Group.of(question)
        tiling._settle([group])
        found = sum(
            count * table.values("energy")[best]
            for count, table, best in zip(group.counts, group.tables, group.best, strict=True)
        )
        assert found == pytest.approx(energy, rel=1e-12)
        for table, best, limit in zip(group.tables, group.best, limits, strict=True):
            assert table.time[best] <= limit


def test_grid_has_every_schedule() -> None:
    """Against loops over sizes, orders and slots: what fits, but for what has fewer slots."""
    op, machine = DenseOp(60, 200, 96, 4, 32, True), SMALL
    space = space_of(op, (96, 32), machine, "sparqle", 0.3)
    table = ScheduleTable(space, np.flatnonzero(np.isfinite(space.bound)))
    found = {table.candidates.decisions(i) for i in range(len(table.candidates))}
    fitting = set()
    for m, n, k, outer, keep, *slots in itertools.product(
        *(tile_sizes(60, 16), tile_sizes(200, 16), (96, 32)),
        *itertools.repeat((True, False), 2),
        *itertools.repeat((1, 2), 3),
    ):
        names = ("activation_slots", "weight_slots", "accumulator_slots")
        some = Decisions(
            **{"m": m, "n": n, "k": k, "rows_outer": outer, "keep_outer": keep},
            **dict(zip(names, slots, strict=True)),
        )
        if sum(buffer_needs(op, machine, some).values()) <= machine.onchip_bytes:
            fitting.add(some)
    assert found <= fitting

    def more(some: Decisions, other: Decisions) -> bool:
        slots = ("activation_slots", "weight_slots", "accumulator_slots")
        plain = dict.fromkeys(slots, 1)
        return (
            replace(some, **plain) == replace(other, **plain)
            and some != other
            and all(getattr(some, name) >= getattr(other, name) for name in slots)
        )

    for left_out in fitting - found:
        assert any(more(other, left_out) for other in found)
    for kept in found:
        assert not any(more(other, kept) for other in fitting)


def test_bounds_are_below_the_time() -> None:
    """By no more than what a walk rounds up."""
    for ops in random_ops(3, 6):
        space = space_of(ops[0], tile_sizes(ops[0].k, 32), EDGE, "dense", 0.0)
        table = ScheduleTable(space, np.flatnonzero(np.isfinite(space.bound)))
        line = table.timelines(np.arange(len(table.time)))[0]
        assert (table.time <= 1.01 * line.run().total_cycles).all()


def test_many_questions_are_answered_as_one_by_one() -> None:
    questions = [
        Question(ops, machine, scheme)
        for ops in random_ops(11, 3)
        for machine in (EDGE, CRAMPED)
        for scheme in ALL_SCHEMES
    ]
    tiling._ANSWERS.clear()
    alone = [choose_schedules(q.ops, q.accelerator, q.scheme) for q in questions]
    tiling._ANSWERS.clear()
    choose_together(questions)
    assert len(tiling._ANSWERS) > 0
    assert [choose_schedules(q.ops, q.accelerator, q.scheme) for q in questions] == alone


def test_less_energy_for_hardly_more_time() -> None:
    """Times within the tolerance are not worth much traffic."""
    op, machine = DenseOp(2048, 11008, 4096), EDGE
    (chosen,) = choose_schedules((op,), machine, "dense")
    question, _ = Question((op,), machine, "dense").plain()
    group = tiling._Group.of(question)
    tiling._settle([group])
    (table,), (best,) = group.tables, group.best
    assert table.candidates.decisions(best) == chosen
    near = table.walked & (table.time <= table.time[best])
    assert table.values("energy")[best] == table.values("energy")[near].min()
