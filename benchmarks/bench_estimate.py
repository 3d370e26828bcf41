"""`estimate` of published models: its time, its figures, and how well transferred digits do.

    python benchmarks/bench_estimate.py [--repeat 3] [--run RUN.json] [--json FILE]

First the time of Llama2-7B (prefill of 2048 tokens and decode at 2048, four schemes), each in a new
process, after import: at most 2 s is the aim. Then what split precision saves against the dense
baseline for every model, phase and preset. With ``--run`` (what ``sparqle run --engine analytical
--json`` wrote for SmolLM2) the estimate of that model beside the figures from its real bitmaps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.results.passes import PARTS, PHASES
from sparqle_tvm.results.run import RunResult
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.target.accelerator import PRESETS

AIM_SECONDS = 2.0
TIMED = """
import time
from sparqle_tvm.studies.estimate import estimate
wall, cpu = time.perf_counter(), time.process_time()
for phase in ("prefill", "decode"):
    estimate("llama2-7b", phase, seq=2048)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""

Json = dict[str, Any]


def timing(repeat: int) -> Json:
    """Best of some runs in processes of their own, where nothing is cached."""
    runs = []
    for _ in range(repeat):
        command = [sys.executable, "-c", TIMED]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append([float(value) for value in output.split()])
    return {
        "wall_seconds": min(wall for wall, _ in runs),
        "cpu_seconds": min(cpu for _, cpu in runs),
        "aim_seconds": AIM_SECONDS,
    }


def savings(seq: int) -> list[Json]:
    """What split precision saves, for every model, phase and preset."""
    records = []
    for target in PRESETS:
        for model in MODELS:
            for phase in PHASES:
                found = estimate(model, phase, seq=seq, target=target, schemes=("dense", "sparqle"))
                whole = found.saved("sparqle")
                records.append(
                    {
                        "target": target,
                        "model": found.model.name,
                        "phase": phase,
                        "dense_layers_reduction": found.saved("sparqle", "dense_layers").cycles,
                        "cycles_reduction": whole.cycles,
                        "energy_reduction_low": whole.energy.low,
                        "energy_reduction": whole.energy.mid,
                        "energy_reduction_high": whole.energy.high,
                        "weight_bound": found.schemes["sparqle"].whole_model.weight_bound,
                    }
                )
    return records


def print_savings(rows: list[Json]) -> None:
    print("\nsaved by split precision, transferred MSB sparsity; whole model but for the first")
    print("target          model             phase     time, dense layers   time   energy (band)")
    for row in rows:
        band = f"{row['energy_reduction_low']:6.1%} to {row['energy_reduction_high']:.1%}"
        limit = "  waits for weights" if row["weight_bound"] else ""
        print(
            f"{row['target']:15} {row['model']:17} {row['phase']:9} "
            f"{row['dense_layers_reduction']:12.1%} {row['cycles_reduction']:12.1%} "
            f"{row['energy_reduction']:8.1%} ({band.strip()}){limit}"
        )


def against_run(run: RunResult) -> list[Json]:
    """The estimate of SmolLM2 with transferred digits beside a run's figures."""
    records = []
    for one in run.passes:
        found = estimate(
            "smollm2-135m",
            one.phase,
            seq=one.past or one.tokens,
            target=run.accelerator,
            table=run.table,
            schemes=("dense", "sparqle"),
        )
        for scheme, counted in one.schemes.items():
            for part in PARTS:
                real, guess = counted.part(part), found.schemes[scheme].part(part)
                records.append(
                    {
                        "phase": one.phase,
                        "scheme": scheme,
                        "part": part,
                        "cycles": guess.cycles / real.cycles - 1,
                        "dram_bytes": guess.dram_bytes / real.dram_bytes - 1,
                        "joules": guess.energy.joules.mid / real.energy.joules.mid - 1,
                    }
                )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--run", metavar="FILE", help="what sparqle run --json wrote for SmolLM2")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    result: Json = {"timing": timing(arguments.repeat), "savings": savings(arguments.seq)}
    for name, value in result["timing"].items():
        print(f"{name:14} {value:6.2f}")
    print_savings(result["savings"])
    if arguments.run:
        result["against_run"] = against_run(RunResult.load(arguments.run))
        print("\nestimate of SmolLM2 over its run, less 1")
        for row in result["against_run"]:
            print(
                f"{row['phase']:8} {row['scheme']:8} {row['part']:13} cycles {row['cycles']:+.2%}  "
                f"bytes {row['dram_bytes']:+.2%}  joules {row['joules']:+.2%}"
            )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
