"""What split precision saves of the energy if the baseline has its tiles: planes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparqle_tvm.results.counted import CountedEncoding
from sparqle_tvm.results.passes import BASELINE, PARTS, PassResult
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import OpCost, costs_with
from sparqle_tvm.target.cost.energy import energy
from sparqle_tvm.target.cost.energy_table import EnergyTable
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.model import SimulatedOp
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp


def saved_with_same_tiles(
    encodings: Sequence[CountedEncoding],
    counted: PassResult,
    accelerator: Accelerator,
    table: EnergyTable,
    static_watts: float | None = None,
) -> dict[str, float]:
    """Count ``dense`` with the tiles of ``sparqle``, and what is saved of that, by part.

    What other tiles cost the baseline is counted by formula, of a simulated pass too. Empty without
    both schemes.
    """
    if not {BASELINE, "sparqle"} <= set(counted.schemes):
        return {}
    ops: dict[tuple[DenseOp, Decisions], int] = {}
    pairs = []
    for e in encodings:
        for own, split in zip(e.costs[BASELINE][1], e.costs["sparqle"][1], strict=True):
            if split.scheme == "sparqle":
                keys = [_scheduled(cost) for cost in (own, split)]
                mine, theirs = (ops.setdefault(key, len(ops)) for key in keys)
                pairs.append((mine, theirs, e.times))
    costs = costs_with(list(ops), accelerator, "dense")

    def joules(events: Events) -> float:
        return energy(events, accelerator, table, static_watts=static_watts).joules.mid

    more = sum(
        times * (joules(costs[theirs].events) - joules(costs[mine].events))
        for mine, theirs, times in pairs
    )
    found = {}
    for part in PARTS:
        spent = {
            scheme: counted.schemes[scheme].part(part).energy.joules.mid
            for scheme in (BASELINE, "sparqle")
        }
        found[part] = 1 - spent["sparqle"] / (spent[BASELINE] + more)
    return found


def _scheduled(cost: OpCost | SimulatedOp) -> tuple[DenseOp, Decisions]:
    """The op as the baseline has it, with the schedule that was counted."""
    schedule = cost.tiling.schedule
    assert isinstance(schedule, Decisions)  # one, not many
    return replace(cost.tiling.op, label="", block_rows=0).in_scheme("dense"), schedule
