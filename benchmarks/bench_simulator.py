"""Speed of the simulator: values and cycles, a whole prefill, timing alone, SCALE-Sim beside it.

    python benchmarks/bench_simulator.py [--only values model timing scalesim] [--threads 2]
        [--scalesim-python PATH] [--json FILE]

``values``: one op of 2048 x 4096 x 4096, 30 % of the MSBs stored, beside ``torch._int_mm`` (which
is timed on as many rows as a few seconds allow). ``model``: every dense op of a 512-token prefill
of SmolLM2-135M, values and cycles. ``timing``: every dense op of a Llama2-7B prefill of 2048
tokens, cycles only. ``scalesim``: a GEMM of 256 x 512 x 512 on a 32 x 32 array in SCALE-Sim, if
the interpreter given (its own virtual environment, with NumPy below 2) can import it, and here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import Machine, run_scalesim

from sparqle_tvm.numerics import QuantizedWeights, encode
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_schedule
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.simulator import (
    activation_tensors,
    draw_nnz,
    nnz_from_bitmap,
    simulate,
    simulate_timing,
    tile_order,
    weight_tensors,
)
from sparqle_tvm.threads import use_threads

Json = dict[str, Any]

EDGE = PRESETS["sparqle/edge"]
DENSITY = 0.3

# (N, K) of the dense ops of a layer, and how many layers.
SMOLLM2_LAYERS = 30
SMOLLM2 = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
SMOLLM2_HEAD = (49152, 576)
LLAMA2_LAYERS = 32
LLAMA2 = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]


def fastest(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several calls."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def compile_op(spec: DenseOp, accelerator: Accelerator = EDGE) -> Program:
    return generate(default_schedule(spec, accelerator), spec, accelerator)


class Op:
    """A dense op with random operands, ready to be simulated."""

    def __init__(
        self, spec: DenseOp, rng: np.random.Generator, accelerator: Accelerator = EDGE
    ) -> None:
        shape = (spec.m, spec.k)
        wide = rng.random(shape) < DENSITY
        q = np.where(wide, rng.integers(-119, 120, shape), rng.integers(-8, 8, shape))
        self.q = q.astype(np.int8)
        low = -8 if spec.weight_signed else 0
        values = rng.integers(low, low + 16, (spec.n, spec.k)).astype(np.int8)
        self.weights = QuantizedWeights(values, *_scales(spec, rng))
        self.sliced = encode(self.q)
        self.program = compile_op(spec, accelerator)
        header = self.program.header
        self.activations = activation_tensors(header, self.sliced, np.ones(spec.m, np.float32))
        self.tensors = {**self.activations, **weight_tensors(header, self.weights)}

    def run(self) -> int:
        """Order the digits by tiles, simulate; returns the cycles."""
        planes = self.sliced
        msb, pointers = tile_order(self.program.header, planes.pbm, planes.msb, planes.row_ptr)
        tensors = {**self.tensors, Tensor.MSB: msb, Tensor.MSB_PTR: pointers}
        return simulate(self.program, tensors).total_cycles


def _scales(spec: DenseOp, rng: np.random.Generator) -> tuple[Any, Any]:
    if not spec.group_size:
        return rng.uniform(0.001, 0.1, spec.n).astype(np.float32), None
    shape = (spec.n, spec.k // spec.group_size)
    minimum = rng.uniform(-1, 1, shape).astype(np.float16) if spec.has_min else None
    return rng.uniform(0.001, 0.1, shape).astype(np.float16), minimum


def bench_values(repeats: int) -> Json:
    spec = DenseOp(m=2048, n=4096, k=4096)
    op = Op(spec, np.random.default_rng(0))
    op.run()
    seconds = fastest(op.run, repeats)
    macs = spec.m * spec.n * spec.k
    result: Json = {
        "seconds": seconds,
        "gmacs_per_second_both_planes": 2 * macs / seconds / 1e9,
        "msb_sparsity": op.sliced.msb_sparsity,
    }
    print(
        f"values   2048 x 4096 x 4096: {seconds:.3f} s, {2 * macs / seconds / 1e9:.1f} GMAC/s of "
        f"digits, MSB sparsity {op.sliced.msb_sparsity:.2f}"
    )
    torch_seconds, rows = int_mm_seconds(op.q, op.weights.values)
    if torch_seconds is None:
        print("         torch is not installed: no comparison")
        return result
    ratio = torch_seconds / seconds
    result |= {"int_mm_seconds": torch_seconds, "int_mm_rows": rows, "ratio_to_int_mm": ratio}
    print(
        f"         torch._int_mm: {torch_seconds:.3f} s (timed on {rows} rows); "
        f"the simulator has {ratio:.2f} of its speed"
    )
    return result


def int_mm_seconds(q: np.ndarray, w: np.ndarray) -> tuple[float | None, int]:
    """Seconds of ``torch._int_mm`` for all rows, from as many rows as take about a second."""
    try:
        import torch
    except ImportError:
        return None, 0
    rows, weights = 32, torch.from_numpy(w).t()
    while True:
        part = torch.from_numpy(q[:rows])
        seconds = fastest(lambda part=part: torch._int_mm(part, weights), 1 if rows > 32 else 2)
        if rows == len(q) or seconds > 0.5:
            break
        rows = min(4 * rows, len(q))
    if seconds < 2:
        seconds = min(seconds, fastest(lambda: torch._int_mm(part, weights), 3))
    return seconds * len(q) / rows, rows


def bench_model(tokens: int) -> Json:
    rng = np.random.default_rng(0)
    q4_1 = {"group_size": 32, "has_min": True, "weight_signed": False}
    specs = [DenseOp(m=tokens, n=n, k=k, **q4_1) for n, k in SMOLLM2]
    head = DenseOp(m=1, n=SMOLLM2_HEAD[0], k=SMOLLM2_HEAD[1], **q4_1)
    made = {spec: Op(spec, rng) for spec in dict.fromkeys([*specs, head])}
    first = time.perf_counter()
    for op in made.values():
        op.run()
    first = time.perf_counter() - first
    begin = time.perf_counter()
    cycles = sum(made[spec].run() for _ in range(SMOLLM2_LAYERS) for spec in specs)
    cycles += made[head].run()
    seconds = time.perf_counter() - begin
    ops = SMOLLM2_LAYERS * len(specs) + 1
    print(
        f"model    SmolLM2-135M, {tokens} tokens: {ops} ops in {seconds:.2f} s, {cycles} cycles "
        f"(first run of the {len(made)} different ops, kernels compiled: {first:.2f} s)"
    )
    return {"seconds": seconds, "first_seconds": first, "ops": ops, "cycles": cycles}


def bench_timing() -> Json:
    rng = np.random.default_rng(0)
    begin = time.perf_counter()
    specs = [DenseOp(m=2048, n=n, k=k, group_size=32) for n, k in LLAMA2]
    programs = {spec: compile_op(spec) for spec in dict.fromkeys(specs)}
    generated = time.perf_counter()
    cycles = stalled = 0
    for _ in range(LLAMA2_LAYERS):
        for spec in specs:
            program = programs[spec]
            chunk = min(program.header.k_chunk, spec.k)
            nnz = draw_nnz(rng, [0.2, 0.3, 0.4], spec.m, spec.k, chunk)
            result = simulate_timing(program, spec.m, nnz)
            cycles += result.total_cycles
            stalled += result.array.stalled
    seconds = time.perf_counter() - generated
    print(
        f"timing   Llama2-7B, 2048 tokens: {LLAMA2_LAYERS * len(specs)} ops in {seconds:.2f} s, "
        f"{cycles} cycles, array stalled {stalled / cycles:.1%} "
        f"(code generation: {generated - begin:.2f} s)"
    )
    return {"seconds": seconds, "cycles": cycles, "generation_seconds": generated - begin}


def bench_scalesim(python: str | None, repeats: int) -> Json | None:
    if python is None:
        print("scalesim no interpreter given: pass --scalesim-python (pip install scalesim==3.0.0)")
        return None
    m, n, k = 256, 512, 512
    machine = Machine(output_kib=256)
    begin = time.perf_counter()
    found = run_scalesim(python, machine, m, n, k, interface="CALC")
    scalesim = time.perf_counter() - begin
    if isinstance(found, str):
        print(f"scalesim did not run: {found}")
        return None
    spec = DenseOp(m=m, n=n, k=k)
    op = Op(
        spec, np.random.default_rng(0), replace(EDGE, name="32 x 32", rows=32, cols=32, lanes=1)
    )
    nnz = nnz_from_bitmap(op.sliced.pbm, op.program)
    op.run()
    values = fastest(op.run, 10 * repeats)
    timing = fastest(lambda: simulate_timing(op.program, m, nnz), 10 * repeats)
    print(
        f"scalesim {m} x {n} x {k} on 32 x 32: {scalesim:.1f} s there; here {timing * 1e3:.2f} ms "
        f"for cycles ({scalesim / timing:.0f} times as fast), {values * 1e3:.2f} ms with values "
        f"({scalesim / values:.0f} times)"
    )
    return {
        "scalesim_seconds": scalesim,
        "timing_seconds": timing,
        "timing_ratio": scalesim / timing,
        "values_seconds": values,
        "values_ratio": scalesim / values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("values", "model", "timing", "scalesim")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--tokens", type=int, default=512, help="of the prefill of SmolLM2")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--scalesim-python", help="interpreter that can import scalesim")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    threads = use_threads(arguments.threads)
    print(f"{threads} threads")
    figures: Json = {"threads": threads}
    if "values" in arguments.only:
        figures["values"] = bench_values(arguments.repeats)
    if "model" in arguments.only:
        figures["model"] = bench_model(arguments.tokens)
    if "timing" in arguments.only:
        figures["timing"] = bench_timing()
    if "scalesim" in arguments.only:
        figures["scalesim"] = bench_scalesim(arguments.scalesim_python, arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
