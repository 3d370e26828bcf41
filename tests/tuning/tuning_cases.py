"""Small ops and machines that a search is over with in seconds."""

from __future__ import annotations

from dataclasses import replace

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tuning import Space, TuningTask, default_of, make_space, tasks_of_group

EDGE = PRESETS["sparqle/edge"]
STARVED = replace(EDGE, name="starved", dram_bytes_per_cycle=4.0)
CRAMPED = replace(
    EDGE,
    name="cramped",
    activation_buffer_bytes=8192,
    scratchpad=False,
    weight_buffer_bytes=8192,
    accumulator_buffer_bytes=16384,
)


def spec_of(n: int = 96, k: int = 128, m: int = 64, **others) -> DenseOp:
    return DenseOp(m=m, n=n, k=k, group_size=32, **others)


def task_of_spec(spec: DenseOp, rows: int = 48, accelerator=STARVED) -> TuningTask:
    (task,) = tasks_of_group((spec,), rows, accelerator)
    return task


def small_space(task: TuningTask, accelerator=STARVED) -> Space:
    """Few tiles, two slots or one: small enough to try everything."""
    knobs = dict(make_space(task, accelerator, depths=(1, 2)).knobs)
    default = default_of(task, accelerator)
    for name in ("m", "n", "k"):
        knobs[name] = tuple(sorted({getattr(default, name), knobs[name][0]}))
    knobs |= {"accumulator_slots": (2,), "row_split": (default.row_split,), "weight_slots": (2,)}
    return Space(knobs)
