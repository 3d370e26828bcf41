"""How many schedules a minute the search measures, and where the time goes.

    python benchmarks/bench_tuning_rate.py [--trials 80] [--workers 2] [--json FILE]

One process, the dense layers of a block of SmolLM2-135M at 512 tokens, on ``sparqle/edge``: with
the simulator, and with the analytical model. Processor time counts, so that what else runs on the
machine does not. Then the steps of one trial, each by itself, and candidates measured per minute
of a clock by this process and by several: of use on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.buckets import bucket
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import schedule_with
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.verify import verify
from sparqle_tvm.tuning import (
    Meter,
    Tuner,
    TuningTask,
    default_of,
    make_space,
    tasks_of_group,
)
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


def by_workers(task: TuningTask, count: int, workers: int) -> float:
    """Candidates per minute of a clock, once the workers are there."""
    drawn = make_space(task, EDGE).draw(np.random.default_rng(0), 20 * count)
    points = [p for p in drawn if Meter(EDGE).refuses(task, p) is None][:count]
    candidates = [(task, point) for point in points]
    with Workers(Meter(EDGE), workers) as there:
        list(there.measure(candidates))  # every worker has imported TVM then
        begin = time.perf_counter()
        list(there.measure(candidates))
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
    for workers in (1, arguments.workers):
        found = by_workers(tasks[-1], arguments.trials, workers)
        figures["workers"][workers] = found
        print(f"{workers} workers   {found:,.0f} candidates per minute of a clock")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
