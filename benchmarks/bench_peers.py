"""Cycles of dense GEMMs here, in ZigZag and in SCALE-Sim: the same array, buffers and DRAM.

    python benchmarks/bench_peers.py [--scalesim-python PATH] [--zigzag-python PATH] [--json FILE]

Each peer lives in an environment of its own (`pip install zigzag-dse six`; `pip install
scalesim==3.0.0 "numpy<2"`); what is not given is left out. All are told: 32 x 32 PEs of one 8-bit
multiplier, int8 x int8 in one pass, buffers of 512, 512 and 1024 KiB, 16 bytes of DRAM per cycle,
16-bit outputs. Here that is the `a4` scheme with digits of 8 bits, without cycles per descriptor.

Where they differ, and why:

- SCALE-Sim gives every operand an interface of its own with the full bandwidth, and counts the
  skewed fill and drain of a systolic array for every tile; our array broadcasts.
- ZigZag counts the first fill of the buffers and the last write-back beside the computation, not
  overlapped with it; we overlap all but the first and last tile, but charge scales of rows and
  channels and the drain.
- For M = 1 our idle PE rows share K; ZigZag and SCALE-Sim leave them idle. There the weights of
  the DRAM decide, unless bandwidth is ample.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from peers import Machine, PeerCycles, run_scalesim, run_zigzag

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.analytical import OpCost, encoding_costs
from sparqle_tvm.target.op import DenseOp

MACHINE = Machine()
PREFILL = [
    (128, 192, 576),
    (128, 576, 576),
    (128, 1536, 576),
    (128, 576, 1536),
    (256, 512, 512),
    (64, 1024, 1024),
]
DECODE = [(1, 192, 576), (1, 576, 576), (1, 1536, 576), (1, 576, 1536), (16, 576, 576)]


def accelerator() -> Accelerator:
    """The machine as an accelerator of ours."""
    return replace(
        PRESETS["sparqle/edge"],
        name="int8 32 x 32",
        rows=MACHINE.rows,
        cols=MACHINE.cols,
        lanes=1,
        digit_bits=8,
        dram_bytes_per_cycle=float(MACHINE.bytes_per_cycle),
        dma_descriptor_cycles=0,
        activation_buffer_bytes=MACHINE.activation_kib * 1024,
        scratchpad=False,
        weight_buffer_bytes=MACHINE.weight_kib * 1024,
        accumulator_buffer_bytes=MACHINE.output_kib * 1024,
        drain_elements_per_cycle=MACHINE.cols,
    )


def ours(m: int, n: int, k: int) -> OpCost:
    """The GEMM by our formula, in one pass."""
    nothing = RowNnz(np.zeros((m, 1), dtype=np.int32), k, k)
    shape = DenseOp(m, n, k, weight_bits=8, digit_bits=8, label="gemm")
    _, (cost,) = encoding_costs("gemm", nothing, [shape], accelerator(), "a4")
    return cost


def lower_bound(m: int, n: int, k: int) -> int:
    """Cycles that no schedule can beat: MACs of the array, or bytes that have to be moved once."""
    array = m * n * k / (MACHINE.rows * MACHINE.cols)
    return round(max(array, (m * k + n * k + 2 * m * n) / MACHINE.bytes_per_cycle))


def shown(found: PeerCycles | str | None, reference: int) -> str:
    if not isinstance(found, PeerCycles):
        return "-" if found is None else f"failed: {found}"[:24]
    return f"{found.total:,} ({found.total / reference:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scalesim-python", help="interpreter that can import scalesim")
    parser.add_argument("--zigzag-python", help="interpreter that can import zigzag")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print("cycles in all (times ours)")
    print(f"{'M x N x K':>18} {'bound':>9} {'ours':>9} {'ours, array':>12}", end="")
    print(f" {'ZigZag':>18} {'SCALE-Sim':>18}")
    rows = []
    for m, n, k in PREFILL + DECODE:
        cost, bound = ours(m, n, k), lower_bound(m, n, k)
        zigzag = scalesim = None
        if arguments.zigzag_python:
            zigzag = run_zigzag(arguments.zigzag_python, MACHINE, m, n, k)
        if arguments.scalesim_python:
            scalesim = run_scalesim(arguments.scalesim_python, MACHINE, m, n, k)
        total = cost.total_cycles
        print(f"{f'{m} x {n} x {k}':>18} {bound:>9,} {total:>9,} {cost.mma_cycles:>12,}", end="")
        print(f" {shown(zigzag, total):>18} {shown(scalesim, total):>18}", flush=True)
        rows.append(
            {
                "m": m,
                "n": n,
                "k": k,
                "lower_bound_cycles": bound,
                "total_cycles": total,
                "mma_cycles": cost.mma_cycles,
                "zigzag": vars(zigzag) if isinstance(zigzag, PeerCycles) else zigzag,
                "scalesim": vars(scalesim) if isinstance(scalesim, PeerCycles) else scalesim,
            }
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
