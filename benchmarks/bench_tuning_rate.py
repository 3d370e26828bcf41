"""How many schedules a minute the search measures, and where the time goes.

    python benchmarks/bench_tuning_rate.py [--trials 80] [--workers 2] [--runs 3] [--json FILE]

One process, the dense layers of a block of SmolLM2-135M at 512 tokens, on ``sparqle/edge``: with
the simulator, and with the analytical model. Processor time counts, so that what else runs on the
machine does not. Then the steps of one trial, each by itself, and the search with one process and
with several, by the clock (of use on a machine that does nothing else), and by the processor time
of the processes: as long as the busiest of them works, or all of them on as many cores as workers.
Last, what the machine gives: measurements alone, without a search, in one process and in several
at once. Every process has one thread.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}  # before anything is imported

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.cost.schedule import Decisions
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.verify import verify
from sparqle_tvm.tuning import (
    Measurement,
    Meter,
    Tuner,
    TuningTask,
    default_of,
    make_space,
    tasks_of_group,
)
from sparqle_tvm.tuning.space import reason_against
from sparqle_tvm.tuning.workers import Workers

EDGE = PRESETS["sparqle/edge"]
TOKENS = 512
# (N, K) of the readers of each encoding of a block.
GROUPS = (((576, 576), (192, 576), (192, 576)), ((576, 576),), ((1536, 576),) * 2, ((576, 1536),))


def smollm2_tasks() -> list[TuningTask]:
    tasks: list[TuningTask] = []
    for group in GROUPS:
        specs = [
            DenseOp(m=bucket(TOKENS), n=n, k=k, group_size=32, has_min=True, weight_signed=False)
            for n, k in group
        ]
        tasks += tasks_of_group(specs, TOKENS, EDGE)
    return tasks


def rate(tasks: list[TuningTask], meter: Meter, trials: int) -> float:
    """Trials per minute of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(meter, "latency", folder)
        begin = time.process_time()
        found = tuner.run(tasks, trials)
        seconds = time.process_time() - begin
    return 60 * len(found.journal) / seconds


@dataclass
class Clocked(Meter):
    """Notes the processor time of every measurement, and of which process."""

    folder: str = ""

    def measure(self, task: TuningTask, decisions: Decisions) -> Measurement:
        """As `Meter.measure`."""
        begin = time.process_time()
        try:
            return super().measure(task, decisions)
        finally:
            with (Path(self.folder) / f"{os.getpid()}.clock").open("a") as file:
                file.write(f"{time.process_time() - begin}\n")


def by_workers(tasks: list[TuningTask], trials: int, workers: int, seed: int) -> dict[str, float]:
    """Trials per minute, search included: of a clock, and if every process had its own core.

    The processes stand, as those of a cluster do (``--dask``): before the clock begins each has
    measured other schedules, and so imported all there is. It ends with the last trial.
    """
    with tempfile.TemporaryDirectory() as folder:
        noted: list[tuple[float, float]] = []
        tuner = Tuner(
            Clocked(EDGE, folder=folder),
            "latency",
            Path(folder) / "base",
            seed=seed,
            on_trial=lambda _: noted.append((time.perf_counter(), time.process_time())),
            workers=workers,
        )
        clocks: list[Path] = []
        while len(clocks) < workers:
            tuner.workers.measure(others(tasks, seed))
            clocks = list(Path(folder).glob("*.clock"))
        for path in clocks:
            path.unlink()
        clock, here = time.perf_counter(), time.process_time()
        tuner.run(tasks, trials)
        end, end_here = noted[-1]
        spent = [sum(map(float, path.read_text().split())) for path in clocks]
    # One process does both; several work beside the one that searches.
    search = end_here - here
    work = search if workers == 1 else max(search, *spent, (search + sum(spent)) / workers)
    return {"clock": 60 * len(noted) / (end - clock), "processor": 60 * len(noted) / work}


def others(tasks: list[TuningTask], seed: int) -> list[tuple[TuningTask, Decisions]]:
    """Some schedules of each op that can be measured."""
    drawn = np.random.default_rng(seed)
    return [
        (task, point)
        for task in tasks
        for point in [
            point
            for point in make_space(task, EDGE).draw(drawn, 200)
            if reason_against(task, EDGE, point) is None
        ][:16]
    ]


def measurements(tasks: list[TuningTask], count: int, workers: int) -> float:
    """Measurements per minute of a clock without any search, in several processes at once."""
    candidates = [(task, default_of(task, EDGE)) for task in tasks]
    candidates *= math.ceil(count / len(candidates))
    with Workers(Meter(EDGE), workers) as there:
        there.measure(candidates[: 4 * workers])  # everything is loaded
        begin = time.perf_counter()
        there.measure(candidates)
        return 60 * len(candidates) / (time.perf_counter() - begin)


def mean_ms(call: Callable[[], Any], repeats: int = 10) -> float:
    call()
    begin = time.process_time()
    for _ in range(repeats):
        call()
    return 1e3 * (time.process_time() - begin) / repeats


def steps(task: TuningTask) -> dict[str, float]:
    """Milliseconds of the parts of a trial."""
    meter, decisions = Meter(EDGE), default_of(task, EDGE)
    spec = task.spec
    scheduled = schedule_with(spec, EDGE, decisions)
    program = generate(scheduled, spec, EDGE)
    data = program.to_bytes()
    return {
        "check": mean_ms(lambda: meter.refuses(task, decisions)),
        "schedule": mean_ms(lambda: schedule_with(spec, EDGE, decisions)),
        "generate": mean_ms(lambda: generate(scheduled, spec, EDGE, verify=False)),
        "verify": mean_ms(lambda: verify(Program.from_bytes(data))),
        "simulate": mean_ms(lambda: meter.run(task, program)),
        "formulas": mean_ms(lambda: meter.count(task, decisions)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="the best of so many, of a clock")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    tasks = smollm2_tasks()
    figures: dict[str, Any] = {"tokens": TOKENS, "trials": arguments.trials}
    for engine, trials in (("simulator", arguments.trials), ("analytical", 4 * arguments.trials)):
        figures[engine] = rate(tasks, Meter(EDGE, engine=engine), trials)
        print(f"{engine:10} {figures[engine]:,.0f} trials per minute")
    figures["step_ms"] = steps(tasks[-1])
    for name, milliseconds in figures["step_ms"].items():
        print(f"  {name:10} {milliseconds:8.2f} ms")
    figures["workers"] = {}
    # No process measures the same schedule twice, which goes faster.
    for workers in (arguments.workers, 1):
        runs = [
            by_workers(tasks, arguments.trials, workers, seed)
            for seed in range(1, 1 + arguments.runs)
        ]
        found = {name: max(run[name] for run in runs) for name in runs[0]}
        figures["workers"][workers] = found
        print(
            f"{workers} workers   {found['clock']:,.0f} trials per minute of a clock, "
            f"{found['processor']:,.0f} if nothing else ran"
        )
    several, one = figures["workers"].values()
    ratios = {name: several[name] / one[name] for name in one}
    print(f"  ratio      {ratios['clock']:.2f} by the clock, {ratios['processor']:.2f} otherwise")
    figures["measurements"] = {
        workers: measurements(tasks, 2 * arguments.trials, workers)
        for workers in (1, arguments.workers)
    }
    one, several = figures["measurements"].values()
    print(
        f"measurements alone, {arguments.workers} processes: {several:,.0f} per minute of a clock, "
        f"one {one:,.0f}: ratio {several / one:.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
