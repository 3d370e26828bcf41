"""What a drain that encodes saves: two int8 layers with a ReLU between, on the simulator.

    python benchmarks/bench_drain.py [--tokens 512] [--width 768] [--hidden 3072]

Without it, the first layer stores floats; the vector unit reads them, quantizes and encodes, and
writes what the second layer reads. With it, the first layer writes that itself. Both compute the
same bits, which is checked. The vector unit is counted by formula (`encode_cost`: three
operations per element, here ReLU, quantization and encoding), and the read of the floats added to
its transfers.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from sparqle_tvm import dialect, passes
from sparqle_tvm.compiler import lowering_passes, split_passes
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.runtime.launch import LaunchRecord, recording
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.analytical import encode_cost
from sparqle_tvm.target.cost.tiling import schedule_of_chunk
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.op import DenseOp

ACCELERATOR = PRESETS["sparqle/edge"]


def layer(builder: relax.BlockBuilder, y: Any, channels: int, scale: float, seed: int) -> relax.Var:
    """An int8 x int4 layer with a static scale of its input, as frontends give it."""
    rng, columns = np.random.default_rng(seed), int(y.ty.shape.values[-1])
    form = relax.const(np.float32(scale)), relax.const(np.int8(0))
    q = op.dequantize(builder.emit(op.quantize(y, *form)), *form)
    w = relax.const(rng.integers(-8, 8, (columns, channels)).astype(np.int8))
    steps = relax.const(np.full(channels, 0.01, np.float32))
    w = op.dequantize(w, steps, relax.const(np.zeros(channels, np.int8)), axis=1)
    return builder.emit(op.matmul(q, w))


def two_layers(tokens: int, width: int, hidden: int) -> tvm.IRModule:
    """The module."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tokens, width), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            up = layer(builder, x, hidden, 0.1, 0)
            down = layer(builder, builder.emit(op.nn.relu(up)), width, 0.2, 1)
            y = builder.emit_output(down)
        builder.emit_func_output(y)
    return builder.finalize()


def run(
    mod: tvm.IRModule, x: np.ndarray, *, encoded: bool
) -> tuple[np.ndarray, list[LaunchRecord]]:
    """The result, and what ran."""
    steps = split_passes() + ([passes.DrainEncoded()] if encoded else [])
    steps += [passes.OffloadDense(ACCELERATOR), *lowering_passes()]
    built = relax.build(mod, host_target(), relax_pipeline=tvm.transform.Sequential(steps))
    vm = relax.VirtualMachine(built, tvm.cpu())
    with recording() as records:
        y = vm["main"](tvm.runtime.tensor(x)).numpy()
    return y, records


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in (("tokens", 512), ("width", 768), ("hidden", 3072)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    dialect.register()
    mod = two_layers(options.tokens, options.width, options.hidden)
    x = np.random.default_rng(2).laplace(size=(options.tokens, options.width)).astype(np.float32)
    plain, (up, down) = run(mod, x, encoded=False)
    drained, encoded = run(mod, x, encoded=True)
    assert plain.tobytes() == drained.tobytes(), "the two differ"
    totals = {}
    header = down.program.header
    shape = DenseOp(options.tokens, options.width, options.hidden)
    schedule = schedule_of_chunk(shape, header.k_chunk, ACCELERATOR, "sparqle")
    # As many digits as the drain stored, spread evenly: the formula takes only their bytes.
    stored = encoded[0].result.counts.dram_write_bytes[Tensor.OUT_MSB] * 8 // header.op.digit_bits
    spans = -(-options.hidden // 8)
    even = np.full((options.tokens, spans), stored / options.tokens / spans).cumsum(axis=1)
    counts = np.diff(np.rint(even).astype(np.int64), axis=1, prepend=0)
    vector = encode_cost(
        "down", RowNnz(counts, 8, options.hidden), schedule, 0, ACCELERATOR, "sparqle"
    )
    floats = options.tokens * options.hidden * ACCELERATOR.float_bytes
    read = math.ceil(floats / ACCELERATOR.dram_bytes_per_cycle)
    totals["floats"] = [
        (up.result.total_cycles, up.result.counts.dram_bytes),
        (max(vector.vector_cycles, vector.dma_cycles + read), vector.dram_bytes + floats),
        (down.result.total_cycles, down.result.counts.dram_bytes),
    ]
    first, second = (record.result for record in encoded)
    totals["encoded"] = [
        (first.total_cycles, first.counts.dram_bytes),
        (0, 0),
        (second.total_cycles, second.counts.dram_bytes),
    ]
    print(f"{options.tokens} tokens, {options.width} -> {options.hidden} -> {options.width}")
    print(f"{'':10}{'first layer':>26}{'vector unit':>26}{'second layer':>26}{'all':>26}")
    for name, parts in totals.items():
        cells = [*parts, tuple(map(sum, zip(*parts, strict=True)))]
        text = "".join(f"{f'{c:,} cycles {b / 1e6:.2f} MB':>26}" for c, b in cells)
        print(f"{name:10}{text}")
    before, after = (np.sum(totals[name], axis=0) for name in ("floats", "encoded"))
    saved = 1 - after / before
    print(f"saved: {saved[0]:.1%} of the cycles, {saved[1]:.1%} of the DRAM bytes")


if __name__ == "__main__":
    main()
