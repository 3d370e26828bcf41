"""What tuning brings: against everything there is, against other searches, on whole models.

    python benchmarks/bench_tuning.py [--only spaces models optimum tolerance] [--quick]
        [--models NAME ..] [--objectives latency energy] [--json FILE]

``spaces``: spaces small enough to measure all of, prefill and decode, by the formulas (all tiles)
and on the simulator (fewer tiles, and all depths of buffers). The search with the learned model,
with the prediction alone, and at random, with equally many trials: how far the best of each lies
above the best there is (worst and mean over some seeds). And how well each orders points that it
has not seen: rank correlation, the learned model after a quarter of the points, at most 64.

``models``: all dense layers of the blocks of SmolLM2-135M and Llama2-7B, prefill and decode, on
`sparqle/edge`, on one starved of bandwidth and one starved of buffers: the default schedules
against the tuned ones, for latency and for energy, beside a bound on the cycles that no schedule
goes below. The simulator measures, but for Llama2's prefill with small buffers, whose programs have
thousands of tiles: the formulas do there.

``tolerance``: Llama2-7B's prefill on `sparqle/edge`, dense layers, if schedules may take so much
longer than the bound for less energy: time, bytes and energy of dense and split, what is saved with
each its own tiles and with the same, the least and the most of both with buffers of a quarter to
four times the size, and seconds of choosing them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.cost import tiling
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.schedule import Decisions, even_splits
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.tuning import (
    Measurement,
    Meter,
    Predictor,
    RecordedMeter,
    Space,
    Tuner,
    TuningResult,
    TuningTask,
    default_of,
    make_space,
    tasks_of_group,
)
from sparqle_tvm.tuning.ranking import CandidateModel
from sparqle_tvm.tuning.search import tune_context
from sparqle_tvm.tuning.space import chunk_unit

EDGE = PRESETS["sparqle/edge"]
STARVED = replace(EDGE, name="4 bytes per cycle", dram_bytes_per_cycle=4.0)
CRAMPED = replace(
    EDGE,
    name="32 KiB buffers",
    activation_buffer_bytes=32 * 1024,
    scratchpad=False,
    weight_buffer_bytes=32 * 1024,
    accumulator_buffer_bytes=64 * 1024,
)
TOKENS = 512
# Rows, N, K, accelerator; one row is decode.
SPACES = (
    (64, 192, 256, STARVED),
    (128, 96, 576, CRAMPED),
    (96, 288, 192, STARVED),
    (64, 128, 768, CRAMPED),
    (1, 576, 576, STARVED),
    (1, 768, 576, CRAMPED),
)
# Programs with more tiles take the simulator too long here.
MOST_TILES = 20_000
SECTIONS = ("spaces", "models", "optimum", "tolerance")
PAIR: tuple[Scheme, ...] = ("dense", "sparqle")
TOLERANCES = (0.0, 0.003, 0.01, 0.02)
BUFFERS = (0.25, 0.35, 0.5, 0.7, 1.4, 2, 2.8, 4)
SEARCHES = ("learned", "predicted", "random")
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
    objectives: tuple[str, ...] = ("latency", "energy")


def small_space(task: TuningTask, accelerator: Accelerator) -> Space:
    """At most two values of a tile's extents, one slot or two: about a hundred points."""
    knobs = dict(make_space(task, accelerator, depths=(1, 2)).knobs)
    default = default_of(task, accelerator)
    for name in ("m", "n", "k"):
        values = knobs[name]
        knobs[name] = tuple(sorted({values[len(values) // 2], getattr(default, name)}))
    knobs |= {"accumulator_slots": (2,), "row_split": (default.row_split,)}
    return Space(knobs)


def formula_space(task: TuningTask, accelerator: Accelerator) -> Space:
    """All tiles, orders and K chunks, with what the formulas do not vary as the default has it."""
    default = default_of(task, accelerator)
    fixed = ("activation_slots", "weight_slots", "accumulator_slots", "row_split")
    knobs = {name: (int(getattr(default, name)),) for name in fixed}
    return Space({**make_space(task, accelerator).knobs, **knobs})


def ranks(values: Any) -> Any:
    """Ranks, equal values with their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rank_correlations(
    task: TuningTask, space: Space, meter: RecordedMeter
) -> dict[str, float] | None:
    """Spearman's of scores and speed on points that the model did not learn from, None if few."""
    rng = np.random.default_rng(0)
    points = [point for _, point in meter.known]
    points = [points[i] for i in rng.permutation(len(points))[:320]]
    count = min(64, len(points) // 4)
    seconds = [meter.measure(task, point).cycles for point in points]
    if count < 16 or len(set(seconds[count:])) < 2:
        return None

    def candidate(point: Decisions) -> Any:
        schedule = s_tir.Schedule(task.workload())
        space.trace(task, point).apply_to_schedule(schedule, remove_postproc=False)
        return ms.MeasureCandidate(schedule, [])

    predictor = Predictor(task, meter.accelerator, meter.activations(task)[0])
    target = tvm.target.Target(meter.accelerator.to_target_config())
    context = tune_context(task, target, None, None, 1)
    candidates = [candidate(point) for point in points]
    found = {}
    for search in SEARCHES:
        model = CandidateModel(lambda _: predictor, search, seed=17)
        results = [ms.runner.RunnerResult([value], None) for value in seconds[:count]]
        model.update(context, candidates[:count], results)
        learned = model.model.predict if search == "learned" else model.predict
        scores = learned(context, candidates[count:])
        speed = -np.asarray(seconds[count:])
        found[search] = float(np.corrcoef(ranks(scores), ranks(speed))[0, 1])
    return found


def bench_space(
    rows: int, n: int, k: int, accelerator: Accelerator, engine: Any, effort: Effort
) -> dict[str, Any]:
    (task,) = tasks_of_group((DenseOp(m=bucket(rows), n=n, k=k, group_size=32),), rows, accelerator)
    meter = Meter(accelerator, engine=engine)
    space = (small_space if engine == "simulator" else formula_space)(task, accelerator)
    points = [p for p in space.points() if meter.refuses(task, p) is None]
    known: dict[tuple[TuningTask, Decisions], Measurement] = {
        (task, p): meter.measure(task, p) for p in points
    }
    recorded = RecordedMeter(accelerator, engine=engine, known=known)
    best = min(cost.cycles for cost in known.values())
    # With as many trials as points every search is exhaustive, so there are fewer.
    trials = min(effort.trials, max(8, len(points) // 10))
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
        "rank_correlation": rank_correlations(task, space, recorded),
    }


def bench_spaces(effort: Effort, console: Console) -> list[dict[str, Any]]:
    found = []
    seen = Table(title="Rank correlation on points not learned from", title_justify="left")
    for name in ("M x N x K", "accelerator", "engine", *SEARCHES):
        seen.add_column(name)
    for engine in ("simulator", "analytical"):
        title = f"Above the best of all points, {engine}: mean (worst) of {effort.seeds} seeds"
        table = Table(title=title, title_justify="left")
        for name in ("M x N x K", "accelerator", "points", "trials", "default", *SEARCHES):
            table.add_column(name)
        for rows, n, k, accelerator in effort.spaces:
            result = bench_space(rows, n, k, accelerator, engine, effort)
            found.append(result)
            row = (
                *(result["task"], result["accelerator"]),
                *(str(result["points"]), str(result["trials"]), f"{result['default_above']:.1%}"),
                *(f"{np.mean(a):.1%} ({max(a):.1%})" for a in result["above"].values()),
            )
            table.add_row(*row)
            print("done:", engine, *row, result["rank_correlation"], file=sys.stderr)
            if result["rank_correlation"]:
                values = (f"{value:.2f}" for value in result["rank_correlation"].values())
                seen.add_row(result["task"], result["accelerator"], engine, *values)
        console.print(table)
    console.print(seen)
    return found


def model_tasks(model: str, rows: int, accelerator: Accelerator) -> list[TuningTask]:
    groups, weights = MODELS[model]
    tasks: list[TuningTask] = []
    for group, times in groups:
        specs = [DenseOp(m=bucket(rows), n=n, k=k, **weights) for n, k in group]
        for task in tasks_of_group(specs, rows, accelerator):
            tasks.append(replace(task, weight=times * task.weight))
    return tasks


def on_simulator(result: TuningResult, meter: Meter, which: str) -> Measurement | None:
    """Cost of all ops as programs that the simulator runs, None if that takes too long."""
    tasks = [(found.task, getattr(found, which)) for found in result.tasks]
    if any(tiles_of(*pair) > MOST_TILES for pair in tasks):
        return None
    costs = [(task.weight, meter.measure(task, decisions)) for task, decisions in tasks]
    return Measurement(
        sum(weight * cost.cycles for weight, cost in costs),
        sum(weight * cost.energy_pj for weight, cost in costs),
    )


def tiles_of(task: TuningTask, decisions: Decisions) -> int:
    """Tiles of an op under decisions."""
    extents = (task.rows, task.spec.n, task.spec.k)
    return math.prod(math.ceil(e / t) for e, t in zip(extents, decisions.tile, strict=True))


def bench_model(
    model: str, rows: int, accelerator: Accelerator, objective: str, engine: Any, trials: int
) -> dict[str, Any]:
    tasks = model_tasks(model, rows, accelerator)
    begin = time.process_time()
    meter = Meter(accelerator)
    with tempfile.TemporaryDirectory() as folder:
        result = Tuner(Meter(accelerator, engine=engine), objective, folder).run(tasks, trials)
    seconds = time.process_time() - begin
    bound = sum(
        task.weight * Predictor(task, accelerator, meter.activations(task)[0]).lower_bound_cycles()
        for task in tasks
    )
    costs = {which: on_simulator(result, meter, which) for which in ("default", "best")}
    simulated = all(costs.values())
    if not simulated:
        costs = {which: result.total(which) for which in costs}
    default, best = costs["default"], costs["best"]
    return {
        "model": model,
        "rows": rows,
        "accelerator": accelerator.name,
        "objective": objective,
        "searched_by": engine,
        "figures_by": "simulator" if simulated else "analytical",
        "trials": len(result.journal),
        "search_seconds": seconds,
        "cycles": {"default": default.cycles, "tuned": best.cycles, "bound": bound},
        "energy_pj": {"default": default.energy_pj, "tuned": best.energy_pj},
    }


def searcher(model: str, rows: int, accelerator: Accelerator) -> str:
    """The simulator, but where programs take it many seconds."""
    long = model == "Llama2-7B" and rows == TOKENS and accelerator == CRAMPED
    return "analytical" if long else "simulator"


def bench_models(effort: Effort, console: Console) -> list[dict[str, Any]]:
    runs: list[tuple[str, int, Accelerator, str, str]] = [
        (model, rows, accelerator, objective, searcher(model, rows, accelerator))
        for model in effort.models
        for rows in (TOKENS, 1)
        for accelerator in (EDGE, STARVED, CRAMPED)
        for objective in effort.objectives
    ]
    title = f"Default and tuned, {effort.trials} trials each"
    table = Table(title=title, title_justify="left")
    columns = ("model", "tokens", "accelerator", "searched by", "for", "cycles", "above bound")
    for name in (*columns, "energy", "figures by"):
        table.add_column(name)
    found = []
    for model, rows, accelerator, objective, engine in runs:
        result = bench_model(model, rows, accelerator, objective, engine, effort.trials)
        found.append(result)
        cycles, joules = result["cycles"], result["energy_pj"]
        above = (f"{cycles[which] / cycles['bound'] - 1:.1%}" for which in ("default", "tuned"))
        row = (
            *(model, str(rows), accelerator.name, engine, objective),
            f"{cycles['tuned'] / cycles['default'] - 1:+.1%}",
            " -> ".join(above),
            f"{joules['tuned'] / joules['default'] - 1:+.1%}",
            result["figures_by"],
        )
        table.add_row(*row)
        print("done:", *row, file=sys.stderr)
    console.print(table)
    return found


def best_of_all(task: TuningTask, accelerator: Accelerator) -> tuple[Measurement, int]:
    """Least cycles and least energy of every schedule that the formulas know, and their number.

    All K chunks count, also those that other readers of the encoding may not like.
    """
    chunks = {*task.chunks, *even_splits(task.spec.k, chunk_unit(task.group, accelerator))}
    task = replace(task, chunks=tuple(sorted(chunks)))
    meter = Meter(accelerator, engine="analytical")
    points = formula_space(task, accelerator).points()
    costs = [meter.count(task, p) for p in points if meter.refuses(task, p) is None]
    least = Measurement(min(c.cycles for c in costs), min(c.energy_pj for c in costs))
    return least, len(costs)


def bench_optimum(console: Console) -> list[dict[str, Any]]:
    title = "Default schedules of SmolLM2-135M above the best of all, by the formulas"
    table = Table(title=title, title_justify="left")
    for name in ("tokens", "accelerator", "points", "cycles", "energy"):
        table.add_column(name)
    found = []
    for rows in (TOKENS, 1):
        for accelerator in (STARVED, CRAMPED):
            meter = Meter(accelerator, engine="analytical")
            sums = {"default": np.zeros(2), "best": np.zeros(2)}
            points = 0
            for task in model_tasks("SmolLM2-135M", rows, accelerator):
                least, count = best_of_all(task, accelerator)
                default = meter.count(task, default_of(task, accelerator))
                for which, cost in (("default", default), ("best", least)):
                    sums[which] += task.weight * np.array([cost.cycles, cost.energy_pj])
                points += count
            cycles, joules = sums["default"] / sums["best"] - 1
            row = (str(rows), accelerator.name, str(points), f"{cycles:.1%}", f"{joules:.1%}")
            table.add_row(*row)
            print("done:", *row, file=sys.stderr)
            found.append(
                {
                    "rows": rows,
                    "accelerator": accelerator.name,
                    "points": points,
                    "default_above": {"cycles": cycles, "energy": joules},
                }
            )
    console.print(table)
    return found


def scaled(factors: Sequence[float]) -> list[Accelerator]:
    """`sparqle/edge` with buffers of other sizes."""
    names = [f"{kind}_buffer_bytes" for kind in ("activation", "weight", "accumulator")]
    return [
        replace(EDGE, name=f"{factor} x", **{n: int(factor * getattr(EDGE, n)) for n in names})
        for factor in factors
    ]


def bench_tolerance(console: Console) -> list[dict[str, Any]]:
    title = "Llama2-7B, prefill of 2,048 tokens on sparqle/edge, dense layers"
    table = Table(title=title, title_justify="left")
    names = ("tolerance", "time", "DRAM", "energy", "saved", "with the same tiles", "choosing")
    names += ("all buffers", "with the same tiles")
    for name in names:
        table.add_column(name)
    found = []
    given: dict[str, Any] = {"seq": 2048, "schemes": PAIR, "attention": "vector"}
    used = tiling.TOLERANCE
    for tolerance in TOLERANCES:
        tiling.TOLERANCE = tolerance
        tiling.forget()
        begin = time.process_time()
        result = estimate("llama2-7b", "prefill", **given)
        seconds = time.process_time() - begin
        others = [estimate("llama2-7b", "prefill", target=m, **given) for m in scaled(BUFFERS)]
        ranges = [
            [saving(each) for each in (result, *others)]
            for saving in (
                lambda found: found.saved("sparqle", "dense_layers").energy.mid,
                lambda found: found.same_tiles["dense_layers"],
            )
        ]
        parts = [result.schemes[scheme].dense_layers for scheme in PAIR]
        saved, same = result.saved("sparqle", "dense_layers"), result.same_tiles["dense_layers"]
        row = (
            f"{tolerance:.1%}",
            " / ".join(f"{part.cycles / 1e6:,.1f} M" for part in parts),
            " / ".join(f"{part.dram_bytes / 1e9:.1f} GB" for part in parts),
            " / ".join(f"{part.energy.joules.mid:.2f} J" for part in parts),
            f"{saved.cycles:.1%}, energy {saved.energy.mid:.1%}",
            f"energy {same:.1%}",
            f"{seconds:.1f} s",
            *(f"{min(values):.1%} to {max(values):.1%}" for values in ranges),
        )
        table.add_row(*row)
        found.append(
            {
                "tolerance": tolerance,
                "cycles": [part.cycles for part in parts],
                "dram_bytes": [part.dram_bytes for part in parts],
                "joules": [part.energy.joules.mid for part in parts],
                "saved": {"cycles": saved.cycles, "energy": saved.energy.mid},
                "same_tiles": same,
                "all_buffers": dict(zip(("saved", "same_tiles"), ranges, strict=True)),
                "seconds": seconds,
            }
        )
    tiling.TOLERANCE = used
    tiling.forget()
    console.print(table)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--quick", action="store_true", help="two spaces, SmolLM2, few trials")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--objectives", nargs="+", choices=("latency", "energy"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    only = arguments.only or SECTIONS
    effort = Effort(trials=200, seeds=2, spaces=SPACES, models=tuple(MODELS))
    if arguments.quick:
        effort = Effort(trials=40, seeds=1, spaces=SPACES[-2:], models=("SmolLM2-135M",))
    effort = replace(effort, models=tuple(m for m in effort.models if m in arguments.models))
    if arguments.objectives:
        effort = replace(effort, objectives=tuple(arguments.objectives))
    console = Console(width=120)
    figures: dict[str, Any] = {}
    if "spaces" in only:
        figures["spaces"] = bench_spaces(effort, console)
    if "models" in only:
        figures["models"] = bench_models(effort, console)
    if "optimum" in only:
        figures["optimum"] = bench_optimum(console)
    if "tolerance" in only:
        figures["tolerance"] = bench_tolerance(console)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
