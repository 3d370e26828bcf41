"""What limits the time, told in cycles that add up to it.

Engines work beside each other, so not every cycle of work is one of the time. Of the `total` cycles
of an op, an encoding or a piece of the vector unit's work (`divide`):

1. The **busiest engine** has all cycles that it works, by what it does then. The array: `array`,
   and `waiting_rows`, the share of its PEs that stand idle because a row of their group has more
   stored digits. The DRAM channel: `weights`, `activations` (outputs, scales and all that is no
   weight included), `kv_cache`, by their bytes, and `descriptors`, what every transfer costs
   besides its bytes. The drain path: `drain`. The vector unit: `encode` for an encoding, else
   `vector`. What it does not work, the time may not fall below; what the others do meanwhile is
   hidden.
2. In the rest it stands still. First, if it is not the channel: `fill`, from the begin to the
   first cycle of the array, and from its last one to the end; more bandwidth and smaller tiles
   shorten it.
3. What is left it **waits for others**, in proportion to the cycles that it waited for each if that
   is known, else to the cycles that the other engines work; and for each, by what it does then.

Formula and simulator (`simulated_limits`) follow the same rule. The parts are whole cycles, and
their sum is the total exactly; so are sums over ops those of a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.isa.header import Engine

if TYPE_CHECKING:
    from sparqle_tvm.target.simulator import SimResult

LIMITS = (
    "array",
    "waiting_rows",
    "weights",
    "activations",
    "kv_cache",
    "descriptors",
    "drain",
    "encode",
    "vector",
    "fill",
)
"""What time is divided into."""

CHANNEL = ("weights", "activations", "kv_cache", "descriptors")
"""Those of the DRAM channel."""

Limits = Mapping[str, int]
"""Cycles by `LIMITS`: all of them, zeros too."""

# What the array waits for in a program, by the queue; what is not here is its begin and its end.
_WAITS = {"ACT_READY": "activations", "WGT_READY": "weights", "ACC_FREE": "drain"}


def divide(
    total: int,
    engines: Sequence[Mapping[str, float]],
    begin: float = 0.0,
    end: float = 0.0,
    waits: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Divide the time, see the module.

    Parameters
    ----------
    total : int
        All cycles.
    engines : sequence of mapping of str to float
        Cycles that each engine works, by `LIMITS`; of equally busy ones the first counts.
    begin, end : float
        Cycles before the array's first and after its last.
    waits : mapping of str to float, optional
        What the array waits for before its last cycle, by `LIMITS`, its begin among the loads;
        counts if the array is the busiest.

    Returns
    -------
    dict of str to int
        Cycles by `LIMITS`; their sum is `total`.
    """
    found = dict.fromkeys(LIMITS, 0.0)
    busiest = max(engines, key=lambda work: sum(work.values()))
    # Cycles of work may be rounded up, one by one.
    _share(found, busiest, min(sum(busiest.values()), total))
    rest = max(total - sum(busiest.values()), 0.0)
    if not any(name in CHANNEL for name in busiest):
        found["fill"] = min(begin + end, rest)
        rest -= found["fill"]
    others = _after(waits or {}, begin) if "array" in busiest else {}
    if not any(others.values()):
        for work in engines:
            if work is not busiest:
                others |= {name: others.get(name, 0.0) + n for name, n in work.items()}
    if any(others.values()):
        _share(found, others, rest)
    else:
        found["fill"] += rest
    return _whole(found, total)


def add(parts: Sequence[tuple[Limits, int]]) -> dict[str, int]:
    """Add up parts, each as often as it occurs."""
    return {name: sum(limits[name] * times for limits, times in parts) for name in LIMITS}


def _share(found: dict[str, float], work: Mapping[str, float], cycles: float) -> None:
    """Add cycles in proportion to work."""
    everything = sum(work.values())
    for name, mine in work.items():
        found[name] += cycles * mine / everything if everything else 0.0


def _after(waits: Mapping[str, float], begin: float) -> dict[str, float]:
    """Waits without those at the begin, which are for loads."""
    loads = sum(cycles for name, cycles in waits.items() if name in CHANNEL)
    left = max(1 - begin / loads, 0.0) if loads else 0.0
    return {name: n * left if name in CHANNEL else n for name, n in waits.items()}


def _whole(found: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers of that sum: those that lose most by rounding down are rounded up."""
    down = {name: math.floor(cycles) for name, cycles in found.items()}
    left = total - sum(down.values())
    order = sorted(found, key=lambda name: down[name] - found[name])
    for name in order[: max(left, 0)]:
        down[name] += 1
    # Sums of many fractions may be off by their rounding.
    down[order[0]] += min(left, 0) + max(left - len(order), 0)
    return down


def simulated_limits(result: SimResult) -> dict[str, int]:
    """Divide the time of a program that ran."""
    bound, timing, header = result.bound, result.timing, result.bound.header
    busy = timing.end - timing.start
    channel = dict.fromkeys(CHANNEL, 0.0)
    drain = 0.0
    for operands in bound.classes:
        cls, cycles = operands.cls, float(busy[operands.index].sum())
        if cls.PARTS:
            begun = len(operands) - int(bound.goes_on[operands.index].sum())
            fixed = begun * header.accelerator.dma_descriptor_cycles
            channel["descriptors"] += fixed
            of_channels = cls.EXTENTS.get("rows") == "n"
            channel["weights" if of_channels else "activations"] += cycles - fixed
        elif cls.ENGINE == Engine.STORE:
            drain += cycles
    waiting = result.counts.msb.waiting_lane_cycles / header.accelerator.macs_per_cycle
    array = result.array
    begin = int(timing.start[[i for o in bound.of_kind(Kind.MMA) for i in o.index]].min())
    stalled = {
        _WAITS[reason]: float(cycles)
        for reason, cycles in array.stalled_cycles.items()
        if reason in _WAITS
    }
    return divide(
        result.total_cycles,
        [
            {"array": array.busy - waiting, "waiting_rows": waiting},
            channel,
            {"drain": drain},
        ],
        begin=begin,
        end=array.stalled_cycles.get("END", 0),
        waits=stalled,
    )
