"""Split precision beside the dense baseline on random accelerators: is it ever slower?

    python benchmarks/bench_never_slower.py [--accelerators 50] [--models NAME ..] [--seq 512]
        [--batches 1 8 64] [--seed 0] [--json FILE]

Four accelerators are those that were slower once, the others are drawn: rows, columns, lanes,
bandwidth and buffers. For each of them, every model, prefill of `--seq` tokens and decode after
them, every batch: the time of the dense layers with the encoding of their inputs, and that of the
whole model with attention on the array. Prints what is slower by more than 0.5 % and the worst
cases of both.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.results.passes import PARTS, PHASES
from sparqle_tvm.studies.estimate import choose_ahead, estimate
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.baselines import Scheme

AIM = -0.005
SCHEMES: tuple[Scheme, ...] = ("dense", "sparqle")
# Tokens of a prefill over all sequences: beyond that a larger batch changes next to nothing.
MOST_ROWS = 4096


def random_accelerator(rng: np.random.Generator, number: int) -> Accelerator:
    """An array with memory that may be far too slow or far too fast for it."""
    rows, cols, lanes = (int(2 ** rng.integers(*powers)) for powers in ((3, 7), (3, 7), (3, 6)))
    macs = rows * cols * lanes
    bandwidth = float(np.exp(rng.uniform(np.log(macs / 1024), np.log(macs / 16))))
    # Bytes of a smallest tile, and so many times more.
    buffers = [int(2 ** rng.integers(15, 22)) for _ in range(3)]
    least = (4 * rows * max(lanes, 8) * 9 // 8, 4 * cols * max(lanes, 8), 4 * rows * cols * 8)
    activation, weight, accumulator = map(max, buffers, least)
    return replace(
        PRESETS["sparqle/edge"],
        name=f"random {number}",
        rows=rows,
        cols=cols,
        lanes=lanes,
        dram_bytes_per_cycle=round(max(bandwidth, 1.0), 1),
        activation_buffer_bytes=activation,
        weight_buffer_bytes=weight,
        accumulator_buffer_bytes=accumulator,
        scratchpad=bool(rng.integers(2)),
        drain_elements_per_cycle=max(cols, 16),
        vector_lanes=4 * max(rows, cols),
        vector_macs_per_cycle=16 * max(rows, cols),
    )


def named_machines() -> list[Accelerator]:
    """Those that split precision was slower on before schedules and memory were chosen for it."""
    edge, kib = PRESETS["sparqle/edge"], 1024
    large = dict.fromkeys(("activation_buffer_bytes", "weight_buffer_bytes"), 256 * kib)

    def machine(rows: int, cols: int, lanes: int, bandwidth: float, **buffers: int) -> Accelerator:
        return replace(
            edge,
            name=f"{rows}x{cols}x{lanes}, {sum(buffers.values()) >> 10} KiB",
            **{"rows": rows, "cols": cols, "lanes": lanes, "dram_bytes_per_cycle": bandwidth},
            scratchpad=False,
            drain_elements_per_cycle=cols,
            vector_lanes=4 * cols,
            vector_macs_per_cycle=16 * cols,
            **buffers,
        )

    small = dict.fromkeys(large, 128 * kib)
    return [
        machine(32, 32, 8, 100.0, **small, accumulator_buffer_bytes=128 * kib),
        machine(64, 32, 16, 400.0, **large, accumulator_buffer_bytes=256 * kib),
        machine(64, 32, 16, 400.0, **large, accumulator_buffer_bytes=512 * kib),
        machine(64, 32, 16, 400.0, **large, accumulator_buffer_bytes=1024 * kib),
    ]


def measure(
    accelerator: Accelerator,
    models: list[str],
    seq: int,
    batches: list[int],
) -> list[dict[str, Any]]:
    """What split precision saves of the time, case by case."""
    cases: list[dict[str, Any]] = [
        {"model": model, "phase": phase, "seq": seq, "batch": batch}
        for model in models
        for phase in PHASES
        for batch in batches
        if phase == "decode" or seq * batch <= MOST_ROWS
    ]
    choose_ahead(((accelerator, case) for case in cases), schemes=SCHEMES)
    records = []
    for case in cases:
        found = estimate(
            **case,
            target=accelerator,
            schemes=SCHEMES,
            same_tiles=False,
        )
        saved = {part: found.saved("sparqle", part).cycles for part in PARTS}
        records.append({"accelerator": accelerator.name, **case, "saved": saved})
    return records


def report(
    part: str, machines: dict[str, Accelerator], records: list[dict[str, Any]], worst: int = 5
) -> None:
    """Print the worst cases of a part, and how many there are."""
    print(part.replace("_", " "))
    for record in sorted(records, key=lambda record: record["saved"][part])[:worst]:
        m = machines[record["accelerator"]]
        print(
            f"{record['saved'][part]:+7.2%} {record['model']:14} {record['phase']:8} batch "
            f"{record['batch']:3} {m.rows}x{m.cols}x{m.lanes}, {m.dram_bytes_per_cycle:g} B/cycle, "
            f"{m.activation_buffer_bytes >> 10}/{m.weight_buffer_bytes >> 10}/"
            f"{m.accumulator_buffer_bytes >> 10} KiB{' in one' * m.scratchpad}"
        )
    saved = np.array([record["saved"][part] for record in records])
    print(
        f"{len(saved)} cases: {np.count_nonzero(saved < AIM)} slower by more than {-AIM:.1%}; "
        f"saved {saved.min():+.2%} to {saved.max():+.2%}, median {np.median(saved):+.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accelerators", type=int, default=50)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    machines: dict[str, Accelerator] = {}
    records: list[dict[str, Any]] = []
    drawn = (random_accelerator(rng, number) for number in range(arguments.accelerators))
    for machine in (*named_machines(), *drawn):
        machines[machine.name] = machine
        records += measure(machine, arguments.models, arguments.seq, arguments.batches)
    for part in PARTS:
        report(part, machines, records)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machines": list(map(asdict, machines.values())), "cases": records}, file)


if __name__ == "__main__":
    main()
