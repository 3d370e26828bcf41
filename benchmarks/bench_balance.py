"""What sorting rows brings SmolLM2, by how many rows are sorted together, and for each goal.

    python benchmarks/bench_balance.py [--target edge|mobile|server] [--tokens 512] [--json FILE]

The model runs on the built-in text. Per block: how much of the MSB pass is waiting (as a share of
the LSB pass), cycles of the array against ``dense``, and the time of encodings and dense layers by
formula. Per goal of ``BalanceRows``: the same, and the time on the simulator. Last, how much of the
waiting would be left if the input of ``ffn_down`` kept the order of the input of ``ffn_gate``, that
is, if an order were carried through SwiGLU instead of made anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
from bench_tie import smollm2_cases

from sparqle_tvm.numerics import sorted_rows
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.studies.simulated import simulate_op
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.library import ProgramLibrary
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.block_rows import BALANCES
from sparqle_tvm.target.cost.model import EncodedActivation

Json = dict[str, Any]
Blocks = list[int]


def steps_of(nnz: RowNnz, accelerator: Accelerator) -> Any:
    """Steps of every row, K in one chunk."""
    return -(-nnz.per_chunk(nnz.in_features)[:, 0] // accelerator.lanes)


def waiting(nnz: RowNnz, order: Any, accelerator: Accelerator) -> float:
    """Steps that rows wait in the MSB pass, as a share of the LSB pass."""
    steps = steps_of(nnz, accelerator)
    groups = np.arange(0, len(steps), accelerator.rows)
    slowest = np.maximum.reduceat(steps[order], groups).sum()
    lsb = len(groups) * -(-nnz.in_features // accelerator.lanes)
    return float((slowest - steps.sum() / accelerator.rows) / lsb)


def figures(encodings: list[EncodedActivation], accelerator: Accelerator, blocks: Blocks) -> Json:
    """Array, time and waiting with a block for each encoding."""
    totals = np.zeros(4)
    shares, weights = [], []
    for encoding, block in zip(encodings, blocks, strict=True):
        part = (encoding.label, encoding.nnz, encoding.launches, accelerator)
        _, dense = encoding_costs(*part, "dense")
        encode, ops = encoding_costs(*part, "sparqle", block)
        totals += (
            sum(op.mma_cycles for op in dense),
            sum(op.mma_cycles for op in ops),
            encode.total_cycles,
            sum(op.total_cycles for op in ops),
        )
        order = encoding.nnz.order(block or 1, accelerator.lanes)
        shares.append(waiting(encoding.nnz, order, accelerator))
        weights.append(encoding.macs)
    return {
        "waiting": float(np.average(shares, weights=weights)),
        "mma_reduction": float(1 - totals[1] / totals[0]),
        "encode_cycles": int(totals[2]),
        "op_cycles": int(totals[3]),
        "cycles": int(totals[2] + totals[3]),
    }


def simulated_op_cycles(
    encodings: list[EncodedActivation], programs: ProgramLibrary, blocks: Blocks
) -> int:
    """Time of the dense ops on the simulator."""
    return sum(
        simulate_op(*(shape, e.nnz, "sparqle", programs, e.launches), block_rows=block).total_cycles
        for e, block in zip(encodings, blocks, strict=True)
        for shape in e.launches
    )


def carried(encodings: list[EncodedActivation], accelerator: Accelerator, block: int) -> Json:
    """Waiting in ``ffn_down`` with its rows in order, in the order of ``ffn_gate``, in its own."""
    shares = []
    for before, encoding in itertools.pairwise(encodings):
        if "ffn_down" in encoding.consumers[0].label:
            steps = [steps_of(e.nnz, accelerator) for e in (before, encoding)]
            orders = (np.arange(encoding.nnz.rows), *(sorted_rows(s, block) for s in steps))
            shares.append([waiting(encoding.nnz, order, accelerator) for order in orders])
    mean = np.mean(shares, axis=0)
    return dict(zip(("in_order", "order_of_gate", "own_order"), mean.tolist(), strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=("edge", "mobile", "server"), default="edge")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    accelerator = PRESETS[f"sparqle/{arguments.target}"]
    cases = smollm2_cases(arguments.tokens)
    encodings = [e for phase, e in cases if phase == "prefill" and e.nnz.rows > 1]
    found: Json = {"blocks": {}, "goals": {}}
    print("block      waiting  array   encodings   dense ops       all   (cycles by formula)")
    block = 0
    while block < 2 * arguments.tokens:
        found["blocks"][block] = f = figures(encodings, accelerator, [block] * len(encodings))
        print(
            f"{block or 'none':<10} {f['waiting']:7.1%} {f['mma_reduction']:6.1%} "
            f"{f['encode_cycles']:>11,} {f['op_cycles']:>11,} {f['cycles']:>11,}"
        )
        block = 2 * (block or accelerator.rows)
    print("\ngoal       waiting  array       all by formula   dense ops simulated")
    programs = ProgramLibrary(accelerator)
    for goal in BALANCES:
        blocks = [encoding.block_rows(accelerator, goal) for encoding in encodings]
        f = figures(encodings, accelerator, blocks)
        f["simulated_op_cycles"] = simulated_op_cycles(encodings, programs, blocks)
        found["goals"][goal] = f
        print(
            f"{goal:<10} {f['waiting']:7.1%} {f['mma_reduction']:6.1%} {f['cycles']:>20,} "
            f"{f['simulated_op_cycles']:>21,}"
        )
    found["carried"] = shares = carried(encodings, accelerator, 8 * accelerator.rows)
    print(
        f"\nwaiting in ffn_down: {shares['in_order']:.1%} in order, {shares['order_of_gate']:.1%} "
        f"in the order of ffn_gate, {shares['own_order']:.1%} in its own"
    )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
