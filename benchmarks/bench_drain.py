"""What a drain that encodes saves, and which layers of real nets are drained.

    python benchmarks/bench_drain.py [--tokens 512] [--width 768] [--hidden 3072]
    python benchmarks/bench_drain.py --nets          # quantized by onnxruntime and PT2E
    python benchmarks/bench_drain.py --onnx FILE     # any quantized ONNX model

The first is of two int8 layers with a ReLU between, on the simulator.

Without it, the first layer stores floats; the vector unit reads them, quantizes and encodes, and
writes what the second layer reads. With it, the first layer writes that itself. Both compute the
same bits, which is checked. The vector unit is counted by formula (`encode_cost`: three
operations per element, here ReLU, quantization and encoding), and the read of the floats added to
its transfers.

Nets are of three layers with biases and ReLU. Of the results that a dense layer reads it prints how
many are drained, with which bias, and compares the simulator with the module without drains, bit
for bit, and with the framework that wrote it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

import sparqle_tvm
from sparqle_tvm import dialect, passes
from sparqle_tvm.compiler import lowering_passes, split_passes
from sparqle_tvm.frontend import from_exported_program, from_onnx
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.runtime.launch import LaunchRecord, recording
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.analytical import encode_cost
from sparqle_tvm.target.cost.tiling import schedule_of_chunk
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.op import DenseOp

ACCELERATOR = PRESETS["sparqle/edge"]
WIDTHS = (256, 512, 512, 128)


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


def onnx_net(gemm: bool) -> Any:
    """Layers as exporters write them: Gemm, or MatMul and Add."""
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, constants, x = np.random.default_rng(0), [], [], "x"
    for layer, (columns, channels) in enumerate(pairwise(WIDTHS)):
        w = rng.normal(0, columns**-0.5, (columns, channels)).astype(np.float32)
        bias = rng.normal(0, 0.3, channels).astype(np.float32)
        names = [f"{part}{layer}" for part in "whbr"]
        constants += [numpy_helper.from_array(w, names[0]), numpy_helper.from_array(bias, names[2])]
        y = "y" if channels == WIDTHS[-1] else f"sum{layer}"
        if gemm:
            nodes.append(helper.make_node("Gemm", [x, names[0], names[2]], [y]))
        else:
            nodes.append(helper.make_node("MatMul", [x, names[0]], [names[1]]))
            nodes.append(helper.make_node("Add", [names[1], names[2]], [y]))
        nodes += [helper.make_node("Relu", [y], [names[3]])] if y != "y" else []
        x = names[3]
    given, found = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])]
        for name, width in (("x", WIDTHS[0]), ("y", WIDTHS[-1]))
    )
    graph = helper.make_graph(nodes, "net", given, found, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_onnxruntime(x: np.ndarray, gemm: bool, **options: Any) -> tuple[tvm.IRModule, np.ndarray]:
    """A net quantized statically (QDQ, uint8), and what onnxruntime computes of x."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        given = iter([{"x": x}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.given, None)

    with tempfile.TemporaryDirectory() as folder:
        path, types = Path(folder) / "net.onnx", (QuantType.QUInt8, QuantType.QInt8)
        quantize_static(
            onnx_net(gemm),
            path,
            Reader(),
            activation_type=types[0],
            weight_type=types[1],
            **options,
        )
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), settings)
        return from_onnx(path).mod, session.run(None, {"x": x})[0]


def by_pt2e(x: np.ndarray) -> tuple[tvm.IRModule, np.ndarray]:
    """A module quantized statically by PT2E (x86 quantizer), and what PyTorch computes of x."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    layers = [
        each for sizes in pairwise(WIDTHS) for each in (torch.nn.Linear(*sizes), torch.nn.ReLU())
    ]
    module, given = torch.nn.Sequential(*layers[:-1]).eval(), (torch.from_numpy(x),)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(module, given).module(), quantizer)
    prepared(*given)
    program = torch.export.export(convert_pt2e(prepared), given)
    return from_exported_program(program).mod, program.module()(*given).detach().numpy()


ALONE = {"OpTypesToExcludeOutputQuantization": ["MatMul"]}
NETS: dict[str, Callable[[np.ndarray], tuple[tvm.IRModule, np.ndarray]]] = {
    "onnxruntime, Gemm": lambda x: by_onnxruntime(x, True),
    "onnxruntime, MatMul and Add": lambda x: by_onnxruntime(x, False),
    "onnxruntime, MatMul, Add in float": lambda x: by_onnxruntime(
        x, False, op_types_to_quantize=["MatMul"], extra_options=ALONE
    ),
    "PT2E": by_pt2e,
}


def dense_ops(mod: tvm.IRModule) -> Iterator[dialect.Dense]:
    """The dense ops of the drained module."""
    for _, function in sparqle_tvm.compile(mod, stop_after="drain").functions_items():
        for block in function.body.blocks if isinstance(function, relax.Function) else ():
            found = (dialect.Dense.of(getattr(each, "value", None)) for each in block.bindings)
            yield from (op for op in found if op is not None)


def kinds_of_bias(ops: list[dialect.Dense]) -> Counter[str]:
    """Drained dense ops by what is between their sums and their integers."""
    kinds: Counter[str] = Counter()
    for each in ops:
        if isinstance(each, dialect.SplitDenseEncoded):
            bias = "float bias" if each.bias is not None else "no float bias"
            kinds[f"{bias}, sums on a grid first" if each.mid_scale else bias] += 1
    return kinds


def print_nets(tokens: int) -> None:
    """Which layers of nets are drained, and whether anything else is computed then."""
    x = np.random.default_rng(2).normal(size=(tokens, WIDTHS[0])).astype(np.float32)
    print(f"{tokens} tokens, {' -> '.join(map(str, WIDTHS))}")
    for name, make in NETS.items():
        mod, theirs = make(x)
        kinds = kinds_of_bias(list(dense_ops(mod)))
        plain, drained = (run(mod, x, encoded=flag)[0] for flag in (False, True))
        assert plain.tobytes() == drained.tobytes(), "the two differ"
        print(
            f"{name}: {sum(kinds.values())} of {len(WIDTHS) - 2} drained "
            f"({', '.join(kinds) or 'none'}), bits of the module without drains; "
            f"{np.mean(drained == theirs):.2%} of the framework's bits, at most "
            f"{np.abs(drained - theirs).max():.1e} away"
        )


def print_model(path: str) -> None:
    """Which dense ops of an ONNX model are drained, and why others are not."""
    mod = from_onnx(path).mod
    ops = list(dense_ops(mod))
    kinds = kinds_of_bias(ops)
    print(f"{path}: {sum(kinds.values())} of {len(ops)} dense ops drained {dict(kinds) or ''}")
    reasons = Counter(
        each.reason
        for each in sparqle_tvm.compile(mod).report.skipped
        if each.pass_name == "DrainEncoded"
    )
    for reason, count in reasons.most_common():
        print(f"{count:6} {reason}")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in (("tokens", 512), ("width", 768), ("hidden", 3072)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--nets", action="store_true", help="nets of onnxruntime and PT2E")
    parser.add_argument("--onnx", metavar="FILE", help="a quantized ONNX model")
    options = parser.parse_args()
    dialect.register()
    if options.nets or options.onnx:
        print_nets(options.tokens) if options.nets else print_model(options.onnx)
        return
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
