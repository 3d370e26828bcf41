"""Windows on the device: every value around every centre, from encoding to result and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator_programs import TINY, dense_program, header_for

from sparqle_tvm.numerics import QuantizedWeights, SlicedTensor, encode
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.simulator import SimResult, activation_tensors, simulate, weight_tensors
from sparqle_tvm.target.simulator.streams import transport_order

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["int", "uint"])
BUFFERS = ("activation_buffer_bytes", "weight_buffer_bytes", "accumulator_buffer_bytes")
MACHINE = replace(TINY, rows=16, cols=16, **dict.fromkeys(BUFFERS, 1 << 20))


def every_value(k: int, signed: bool) -> Any:
    """All integers of a type, as its dtype."""
    low = -(2 ** (2 * k - 1)) if signed else 0
    dtype = f"{'' if signed else 'u'}int{16 if k == 8 else 8}"
    return np.arange(low, low + 4**k).astype(dtype)


def multiplied(header: Header, q: Any, zero: Any, weights: Any, tile: int = 16) -> SimResult:
    """Run a program on q, encoded around `zero`."""
    op = header.op
    program = dense_program(header, min(tile, op.m), min(tile, op.n))
    sliced = encode(q, k=op.digit_bits, window=op.window, zero_point=zero)
    scale = np.ones(op.n, np.float32)
    tensors = activation_tensors(header, sliced, np.ones(op.m, np.float32))
    tensors |= weight_tensors(header, QuantizedWeights(weights, scale, bits=op.weight_bits))
    if op.output == "encoded":
        tensors |= {Tensor.OUT_SCALE: np.ones(1, np.float32)}
    return simulate(program, tensors)


def identity(n: int) -> Any:
    return np.eye(n, dtype=np.int8)


@SIGNED
def test_all_values_around_all_static_centres(signed: bool) -> None:
    q = every_value(4, signed).reshape(16, 16)
    for zero in every_value(4, signed).tolist():
        # The nearest centre that lies half a digit within the type.
        centre = min(max(zero, int(q.min()) + 8), int(q.max()) + 1 - 8)
        form = {"act_signed": signed, "centre": centre, "output": "int32"}
        header = header_for(MACHINE, 16, 16, 16, 16, **form)
        found = multiplied(header, q, zero, identity(16)).output
        np.testing.assert_array_equal(found, q.astype(np.int32) - centre)


@SIGNED
@pytest.mark.parametrize("window", ["signed", "unsigned"])
def test_all_values_around_the_zero_points_of_rows(signed: bool, window: str) -> None:
    """Row i has zero point i and all values: what comes out is q - zero point."""
    values = every_value(4, signed)
    zeros = values.astype(np.int32)
    form = {"act_signed": signed, "row_zeros": True, "adds_shift": True, "window": window}
    header = header_for(MACHINE, 256, 256, 256, 256, output="int32", **form)
    q = np.broadcast_to(values, (256, 256))
    found = multiplied(header, q, zeros, identity(256), tile=64).output
    np.testing.assert_array_equal(found, zeros[None, :] - zeros[:, None])


@SIGNED
def test_wide_values_around_some_centres(signed: bool) -> None:
    machine = replace(MACHINE, digit_bits=8, lanes=8)
    q = every_value(8, signed).reshape(256, 256)
    low, high = int(q.min()) + 128, int(q.max()) + 1 - 128
    inside = np.random.default_rng(0).integers(low, high, 8).tolist()
    around = [low, low + 1, low + 128, high - 129, high - 1, high, (low + high) // 2]
    for centre in (0 if signed else low, *inside, *around):
        form = {"act_signed": signed, "centre": centre, "output": "int32", "weight_bits": 2}
        header = header_for(machine, 256, 256, 256, 256, **form)
        found = multiplied(header, q, centre, identity(256), tile=128).output
        np.testing.assert_array_equal(found, q.astype(np.int32) - centre)


@SIGNED
def test_all_outputs_around_all_zero_points(signed: bool) -> None:
    """Sums from -255 to 255, quantized with every zero point: stored planes decode to them."""
    sums = np.arange(-255, 256)
    parts = np.stack([sums // 3, sums // 3, sums - sums // 3 * 2], axis=1).astype(np.int8)
    q = np.pad(parts, ((0, 1), (0, 5)))
    weights = np.ones((8, 8), np.int8)
    low, high = (int(edge(every_value(4, signed))) for edge in (np.min, np.max))
    for zero in range(low, high + 1, 3 if signed else 1):
        centre = min(max(zero, low + 8), high + 1 - 8)
        form = {"out_signed": signed, "out_window": "signed", "out_centre": centre}
        limits = {"out_zero": zero, "out_low": low, "out_high": high, "out_chunk": 8}
        header = header_for(MACHINE, 512, 8, 8, 8, output="encoded", **form, **limits)
        found = multiplied(header, q, 0, weights, tile=512).encoded
        assert found is not None
        msb, row_ptr = transport_order(header, found[Tensor.OUT_PBM], found[Tensor.OUT_MSB])
        planes = (found[Tensor.OUT_LSB], found[Tensor.OUT_PBM], msb, row_ptr)
        sliced = SlicedTensor.from_planes(*planes, shape=(512, 8), signed=signed, zero_point=zero)
        wanted = np.clip(np.append(sums, 0) + zero, low, high)
        np.testing.assert_array_equal(sliced.decode(), np.repeat(wanted[:, None], 8, axis=1))


FORMS = {
    "around a centre": {"centre": 101},
    "plain": {"window": "unsigned"},
    "rows": {"row_zeros": True, "adds_shift": True},
    "plain rows": {"row_zeros": True, "adds_shift": True, "window": "unsigned"},
    "rows, unshifted": {"row_zeros": True},
    "dense": {"scheme": "dense", "window": "unsigned"},
    "dense rows": {"scheme": "dense", "window": "unsigned", "row_zeros": True, "adds_shift": True},
}
WEIGHTS = {"int4": (4, True), "uint4": (4, False), "int8": (8, True), "int2": (2, True)}


@SIGNED
@pytest.mark.parametrize("name", FORMS)
def test_every_pairing_equals_int64(name: str, signed: bool) -> None:
    form, rng = FORMS[name], np.random.default_rng(sum(map(ord, name)) + signed)
    values = every_value(4, signed)
    # Each pair of a form of weights and of zero points is a kernel of its own to compile.
    some = ("int4", "int8") if "row_zeros" in form else WEIGHTS
    for bits, weight_signed in map(WEIGHTS.__getitem__, some):
        m, n, k = (int(size) for size in rng.integers(1, (40, 40, 300)))
        formats = {"act_signed": signed, "weight_bits": bits, "weight_signed": weight_signed}
        header = header_for(MACHINE, m, n, k, 64, output="int32", **form, **formats)
        zero: Any = header.op.centre
        if header.op.row_zeros:
            zero = rng.choice(values, m).astype(np.int32)
        least = -(2 ** (bits - 1)) if weight_signed else 0
        weights = rng.integers(least, least + 2**bits, (n, k)).astype(np.int8)
        q = rng.choice(values, (m, k))
        counted_from = np.reshape(zero, (-1, 1)).astype(np.int64)
        if name == "rows, unshifted":
            counted_from = np.clip(counted_from, int(values[8]), int(values[-8]))
        found = multiplied(header, q, zero, weights).output
        exact = (q.astype(np.int64) - counted_from) @ weights.astype(np.int64).T
        np.testing.assert_array_equal(found, exact)


def test_a_plain_int8_matmul_stores_what_the_signed_window_needs() -> None:
    rng = np.random.default_rng(0)
    m, n, k = 40, 24, 256
    q = np.rint(rng.laplace(scale=12, size=(m, k))).clip(-128, 127).astype(np.int8)
    q[0] = every_value(4, True)
    weights = rng.integers(-128, 128, (n, k)).astype(np.int8)
    header = header_for(MACHINE, m, n, k, 64, output="int32", weight_bits=8)
    result = multiplied(header, q, 0, weights)
    np.testing.assert_array_equal(result.output, q.astype(np.int64) @ weights.T.astype(np.int64))
    # A high digit is needed for what lies outside of [-8, 7]; two weight slices multiply it.
    stored = int(np.count_nonzero((q < -8) | (q > 7)))
    assert result.counts.msb.macs == stored * n * 2
    assert result.counts.lsb.macs == m * n * k * 2
    # Two blocks of 16 columns, two slices.
    assert result.counts.find_first_steps == stored * 2 * 2
    unsigned = {"output": "int32", "weight_bits": 8, "window": "unsigned"}
    plain = multiplied(header_for(MACHINE, m, n, k, 64, **unsigned), q, 0, weights)
    assert plain.counts.msb.macs > result.counts.msb.macs
