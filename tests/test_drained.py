"""Quantized layers one behind the other: what leaves the accelerator is what it reads next."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

import sparqle_tvm
from sparqle_tvm import passes
from sparqle_tvm.compiler import lowering_passes, split_passes
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.runtime.launch import recording
from sparqle_tvm.runtime.timeline_picture import spans_of
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.header import Engine

WIDTHS = (64, 200, 72, 48)


def scalar(value: Any, dtype: str) -> relax.Expr:
    return relax.const(np.asarray(value, dtype), dtype)


def quantized_mlp(widths: tuple[int, ...], tokens: Any) -> tvm.IRModule:
    """Layers as frontends give them: int8, static scales, a bias and a ReLU between two layers.

    The result of the second is quantized before its bias is added.
    """
    rng, builder = np.random.default_rng(0), relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, tokens, widths[0]), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y, scale, zero = x, 0.05, 0
            for columns, channels in pairwise(widths):
                form = scalar(scale, "float32"), scalar(zero, "int8")
                q = op.dequantize(builder.emit(op.quantize(y, *form)), *form)
                w = relax.const(rng.integers(-8, 8, (columns, channels)).astype(np.int8))
                steps = relax.const(rng.uniform(1e-3, 2e-2, channels).astype(np.float32))
                zeros = relax.const(np.zeros(channels, np.int8))
                y = builder.emit(op.matmul(q, op.dequantize(w, steps, zeros, axis=1)))
                if channels != widths[-1]:
                    if channels == widths[2]:
                        grid = scalar(0.13, "float32"), scalar(9, "int8")
                        y = op.dequantize(builder.emit(op.quantize(y, *grid)), *grid)
                    bias = relax.const(rng.normal(0, 2, channels).astype(np.float32))
                    y = builder.emit(op.add(builder.emit(y), bias))
                    y = builder.emit(op.nn.relu(y))
                scale, zero = 0.11, zero - 60
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.finalize()


@pytest.fixture(scope="module")
def mlp() -> tvm.IRModule:
    return quantized_mlp(WIDTHS, tvm.tirx.Var("n", "int64"))


@pytest.fixture(scope="module")
def simulated(mlp: tvm.IRModule) -> Executable:
    return sparqle_tvm.compile(mlp, engine="simulator")


def without_drain(mlp: tvm.IRModule, offload: bool) -> relax.VirtualMachine:
    """The same module, with floats between the layers."""
    steps = split_passes()
    if offload:
        steps.append(passes.OffloadDense(PRESETS["sparqle/edge"]))
    built = relax.build(
        mlp, "llvm", relax_pipeline=tvm.transform.Sequential(steps + lowering_passes())
    )
    return relax.VirtualMachine(built, tvm.cpu())


def test_all_engines_agree_bit_for_bit(mlp: tvm.IRModule, simulated: Executable) -> None:
    assert simulated.report.rewritten["DrainEncoded"] == 2
    plain, host = without_drain(mlp, offload=False), sparqle_tvm.compile(mlp)
    for tokens in (1, 3, 21, 0, 3):
        x = np.random.default_rng(tokens).normal(size=(1, tokens, WIDTHS[0])).astype(np.float32)
        expected = plain["main"](tvm.runtime.tensor(x)).numpy()
        assert host["main"](x).numpy().tobytes() == expected.tobytes()
        assert simulated["main"](x).numpy().tobytes() == expected.tobytes()


def test_programs_agree_on_the_chunk_between_them(simulated: Executable) -> None:
    for tokens in (1, 40):
        simulated["main"](np.ones((1, tokens, WIDTHS[0]), np.float32))
        headers = [record.program.header for record in simulated.profile()]
        assert [header.op.output for header in headers] == ["encoded", "encoded", "float32"]
        for first, second in pairwise(headers):
            assert (first.op.out_window, first.op.digit_bits) == (
                second.op.window,
                second.op.digit_bits,
            )
            assert first.out_chunks == second.chunks
            assert first.chunks == 1 or first.op.out_chunk == second.k_chunk


def test_fewer_bytes_and_cycles_than_floats(mlp: tvm.IRModule, simulated: Executable) -> None:
    tokens = 40
    x = np.random.default_rng(5).normal(size=(1, tokens, WIDTHS[0])).astype(np.float32)
    floats = without_drain(mlp, offload=True)
    with recording() as stored:
        expected = floats["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_array_equal(simulated["main"](x).numpy(), expected)
    for drained, plain in list(zip(simulated.profile(), stored, strict=True))[:2]:
        written = drained.result.counts.dram_write_bytes
        assert sum(written.values()) < plain.result.counts.dram_write_bytes[Tensor.OUT]
        assert drained.result.counts.lsb == plain.result.counts.lsb


def test_the_picture_knows_the_store(simulated: Executable) -> None:
    simulated["main"](np.ones((1, 20, WIDTHS[0]), np.float32))
    profile = simulated.profile()
    result = next(iter(profile)).result
    spans = spans_of(result, Engine.STORE, 0, result.total_cycles)
    assert {(span.family, span.name) for span in spans} >= {("store", "ST.ENC")}


def test_export_and_load(simulated: Executable, tmp_path: Any) -> None:
    x = np.random.default_rng(7).normal(size=(1, 5, WIDTHS[0])).astype(np.float32)
    simulated.export(tmp_path / "mlp.so")
    loaded = sparqle_tvm.load(tmp_path / "mlp.so")
    assert loaded["main"](x).numpy().tobytes() == simulated["main"](x).numpy().tobytes()
    assert any("ST.ENC" in program.disassemble() for program in loaded.programs)
