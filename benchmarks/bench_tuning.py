"""What tuning brings: against everything there is, against other searches, on whole models.

    python benchmarks/bench_tuning.py [--only spaces models] [--quick] [--json FILE]

``spaces``: spaces small enough to measure all of, prefill and decode, by the formulas (all tiles)
and on the simulator (fewer tiles, and all depths of buffers). The search with the learned model,
with the estimate alone, and at random, with equally many trials: how far the best of each lies
above the best there is (worst and mean over some seeds).

``models``: all dense layers of the blocks of SmolLM2-135M and Llama2-7B, prefill and decode, on an
accelerator starved of bandwidth and one starved of buffers: the default schedules against the
tuned ones, for latency and for energy, beside a bound on the cycles that no schedule goes below.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.schedule import Decisions
from sparqle_tvm.target.tir import DenseSpec, bucket
from sparqle_tvm.tuning import (
    Estimator,
    Measurement,
    Meter,
    RecordedMeter,
    Space,
    Tuner,
    TuningTask,
    default_of,
    make_space,
    tasks_of_group,
)

EDGE = PRESETS["sparqle/edge"]
STARVED = replace(EDGE, name="4 bytes per cycle", dram_bytes_per_cycle=4.0)
CRAMPED = replace(
    EDGE,
    name="32 KiB buffers",
    activation_buffer_bytes=32 * 1024,
    weight_buffer_bytes=32 * 1024,
    accumulator_buffer_bytes=64 * 1024,
)
TOKENS = 512
# Rows, N, K, accelerator; one row is decode.
SPACES = (
    (256, 768, 512, STARVED),
    (512, 192, 576, CRAMPED),
    (128, 576, 576, STARVED),
    (64, 384, 1536, CRAMPED),
    (1, 576, 576, STARVED),
    (1, 1536, 576, CRAMPED),
)
SEARCHES = ("learned", "estimate", "random")
# (N, K) of the readers of an encoding, and how many there are in the model.
SMOLLM2 = (
    (((576, 576), (192, 576), (192, 576)), 30),
    (((576, 576),), 30),
    (((1536, 576), (1536, 576)), 30),
    (((576, 1536),), 30),
)
LLAMA2 = (
    (((4096, 4096),) * 3, 32),
    (((4096, 4096),), 32),
    (((11008, 4096),) * 2, 32),
    (((4096, 11008),), 32),
)
MODELS: dict[str, Any] = {
    "SmolLM2-135M": (SMOLLM2, {"group_size": 32, "has_min": True, "weight_signed": False}),
    "Llama2-7B": (LLAMA2, {"group_size": 32}),
}


@dataclass(frozen=True)
class Effort:
    """How much is tried: trials of a search at most, seeds, spaces and models."""

    trials: int
    seeds: int
    spaces: tuple[tuple[int, int, int, Accelerator], ...]
    models: tuple[str, ...]


def small_space(task: TuningTask, accelerator: Accelerator) -> Space:
    """At most three values of a tile's extents, one slot or two: some hundred points."""
    knobs = dict(make_space(task, accelerator, depths=(1, 2)).knobs)
    default = default_of(task, accelerator)
    for name in ("m", "n", "k"):
        values = knobs[name]
        knobs[name] = tuple(sorted({values[len(values) // 3], values[-1], getattr(default, name)}))
    knobs |= {"accumulator_slots": (2,), "row_split": (default.row_split,)}
    return Space(knobs)


def formula_space(task: TuningTask, accelerator: Accelerator) -> Space:
    """All tiles, orders and K chunks, with what the formulas do not vary as the default has it."""
    default = default_of(task, accelerator)
    fixed = ("activation_slots", "weight_slots", "accumulator_slots", "row_split")
    knobs = {name: (int(getattr(default, name)),) for name in fixed}
    return Space({**make_space(task, accelerator).knobs, **knobs})


def bench_space(
    rows: int, n: int, k: int, accelerator: Accelerator, engine: Any, effort: Effort
) -> dict[str, Any]:
    (task,) = tasks_of_group(
        (DenseSpec(m=bucket(rows), n=n, k=k, group_size=32),), rows, accelerator
    )
    meter = Meter(accelerator, engine=engine)
    space = (small_space if engine == "simulator" else formula_space)(task, accelerator)
    points = [p for p in space.points() if meter.refuses(task, p) is None]
    known: dict[tuple[TuningTask, Decisions], Measurement] = {
        (task, p): meter.measure(task, p) for p in points
    }
    recorded = RecordedMeter(accelerator, engine=engine, known=known)
    best = min(cost.cycles for cost in known.values())
    # With as many trials as points every search is exhaustive, so there are fewer.
    trials = min(effort.trials, max(8, len(points) // 8))
    above: dict[str, list[float]] = {search: [] for search in SEARCHES}
    for search in SEARCHES:
        for seed in range(effort.seeds):
            with tempfile.TemporaryDirectory() as folder:
                tuner = Tuner(
                    recorded, "latency", folder, seed=seed, ranking=search, spaces={task: space}
                )
                found = tuner.run([task], trials).tasks[0]
            above[search].append(found.best_cost.cycles / best - 1)
    return {
        "task": f"{rows} x {n} x {k}",
        "accelerator": accelerator.name,
        "engine": engine,
        "points": len(points),
        "trials": trials,
        "best_cycles": best,
        "default_above": known[task, default_of(task, accelerator)].cycles / best - 1,
        "above": above,
    }


def bench_spaces(effort: Effort, console: Console) -> list[dict[str, Any]]:
    found = []
    for engine in ("analytical", "simulator"):
        title = f"Above the best of all points, {engine}: mean (worst) of {effort.seeds} seeds"
        table = Table(title=title, title_justify="left")
        for name in ("M x N x K", "accelerator", "points", "trials", "default", *SEARCHES):
            table.add_column(name)
        for rows, n, k, accelerator in effort.spaces:
            result = bench_space(rows, n, k, accelerator, engine, effort)
            found.append(result)
            table.add_row(
                *(result["task"], result["accelerator"]),
                *(str(result["points"]), str(result["trials"]), f"{result['default_above']:.1%}"),
                *(f"{np.mean(a):.1%} ({max(a):.1%})" for a in result["above"].values()),
            )
        console.print(table)
    return found


def model_tasks(model: str, rows: int, accelerator: Accelerator) -> list[TuningTask]:
    groups, weights = MODELS[model]
    tasks: list[TuningTask] = []
    for group, times in groups:
        specs = [DenseSpec(m=bucket(rows), n=n, k=k, **weights) for n, k in group]
        for task in tasks_of_group(specs, rows, accelerator):
            tasks.append(replace(task, weight=times * task.weight))
    return tasks


def bench_model(
    model: str, rows: int, accelerator: Accelerator, objective: str, engine: Any, trials: int
) -> dict[str, Any]:
    tasks = model_tasks(model, rows, accelerator)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(accelerator, engine=engine)
        result = Tuner(meter, objective, folder).run(tasks, trials)
    bound = sum(
        task.weight * Estimator(task, accelerator, meter.activations(task)[0]).lower_bound_cycles()
        for task in tasks
    )
    default, best = result.total("default"), result.total("best")
    return {
        "model": model,
        "rows": rows,
        "accelerator": accelerator.name,
        "objective": objective,
        "engine": engine,
        "trials": len(result.journal),
        "seconds": time.process_time() - begin,
        "cycles": {"default": default.cycles, "tuned": best.cycles, "bound": bound},
        "energy_pj": {"default": default.energy_pj, "tuned": best.energy_pj},
    }


def bench_models(effort: Effort, console: Console) -> list[dict[str, Any]]:
    found = []
    title = f"Default and tuned, {effort.trials} trials each"
    table = Table(title=title, title_justify="left")
    columns = ("model", "tokens", "accelerator", "by", "for", "cycles", "above bound", "energy")
    for name in columns:
        table.add_column(name)
    runs = [
        (model, rows, accelerator, objective)
        for model in effort.models
        for rows in (TOKENS, 1)
        for accelerator in (STARVED, CRAMPED)
        for objective in ("latency", "energy")
    ]
    for model, rows, accelerator, objective in runs:
        # The simulator where it counts most; the formulas are within 2 % of it.
        whole = (model, rows, objective) == ("SmolLM2-135M", TOKENS, "latency")
        engine = "simulator" if whole else "analytical"
        result = bench_model(model, rows, accelerator, objective, engine, effort.trials)
        found.append(result)
        cycles, joules = result["cycles"], result["energy_pj"]
        above = (f"{cycles[which] / cycles['bound'] - 1:.1%}" for which in ("default", "tuned"))
        table.add_row(
            *(model, str(rows), accelerator.name, engine, objective),
            f"{cycles['tuned'] / cycles['default'] - 1:+.1%}",
            " -> ".join(above),
            f"{joules['tuned'] / joules['default'] - 1:+.1%}",
        )
    console.print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("spaces", "models"))
    parser.add_argument("--quick", action="store_true", help="two spaces, SmolLM2, few trials")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    only = arguments.only or ("spaces", "models")
    effort = Effort(trials=200, seeds=3, spaces=SPACES, models=tuple(MODELS))
    if arguments.quick:
        effort = Effort(trials=40, seeds=1, spaces=SPACES[-2:], models=("SmolLM2-135M",))
    console = Console(width=120)
    figures: dict[str, Any] = {}
    if "spaces" in only:
        figures["spaces"] = bench_spaces(effort, console)
    if "models" in only:
        figures["models"] = bench_models(effort, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
