"""Encoder and decoder against the bytes of `numerics.slicing`, in Amaranth's simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparqle_tvm.numerics import encode
from sparqle_tvm.numerics.integers import bounds, container
from sparqle_tvm.numerics.slicing import SlicedTensor
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.isa.compute import Drain
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.op import DenseOp

pytest.importorskip("amaranth")

from amaranth.sim import Simulator

from sparqle_tvm.target.rtl.encoder import Decoder, Encoder


def word(digits: Any, bits: int) -> int:
    """Digits side by side, the first one lowest."""
    return sum(int(digit) << i * bits for i, digit in enumerate(digits))


def simulate(block: Any, process: Any) -> None:
    simulator = Simulator(block)
    simulator.add_clock(1e-9)
    simulator.add_testbench(process)
    simulator.run()


def run_encoder(q: np.ndarray, expected: SlicedTensor, lanes: int, stalls: Any) -> dict[str, Any]:
    """Planes, pointers and cycles that the encoder makes of q."""
    k, columns, digits = expected.k, q.shape[1], expected.digits
    block, mask = Encoder(lanes, k), (1 << 2 * k) - 1
    out: dict[str, Any] = {"lsb": [], "bits": [], "msb": bytearray(), "ends": [], "counts": []}

    async def process(ctx: Any) -> None:
        ctx.set(block.offset, int(digits.bias - digits.centre) & mask)
        ctx.set(block.ambiguous, int(digits.ambiguous_nibble))
        ctx.set(block.threshold, int(digits.threshold))

        async def cycle() -> None:
            while stalls and stalls.random() < 0.3:
                ctx.set(block.ready, 0)
                await ctx.tick()
            ctx.set(block.ready, 1)
            await ctx.tick()
            if ctx.get(block.plane_valid):
                out["lsb"].append(ctx.get(block.lsb))
                out["bits"].append(ctx.get(block.bits))
            if ctx.get(block.msb_valid):
                data = ctx.get(block.msb).to_bytes(lanes * k // 8, "little")
                out["msb"] += data[: ctx.get(block.msb_bytes)]
            if ctx.get(block.row_valid):
                out["ends"].append(ctx.get(block.row_end))
                out["counts"].append(ctx.get(block.row_count))
            out["cycles"] = out.get("cycles", 0) + 1

        ctx.set(block.valid, 1)
        for row in q:
            for begin in range(0, columns, lanes):
                part = row[begin : begin + lanes]
                ctx.set(block.values, word(part.astype(np.int64) & mask, 2 * k))
                ctx.set(block.used, len(part))
                ctx.set(block.last, begin + lanes >= columns)
                await cycle()
        ctx.set(block.valid, 0)
        ctx.set(block.flush, 1)
        await cycle()

    simulate(block, process)
    return out


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("window", ["signed", "unsigned"])
@pytest.mark.parametrize("signed", [True, False])
def test_encoder_makes_the_bytes_of_the_format(k: int, window: str, signed: bool):
    rng = np.random.default_rng(k)
    low, high = bounds(k, signed)
    lanes = 8
    for trial in range(4):
        rows, columns = int(rng.integers(1, 7)), int(rng.integers(1, 40))
        q = rng.integers(low, high + 1, (rows, columns))
        zero = int(rng.integers(low, high + 1))
        near = rng.integers(-(1 << k - 1), 1 << k - 1, q.shape) + zero
        q = np.where(rng.random((rows, 1)) < rng.random(q.shape), q, np.clip(near, low, high))
        q = q.astype(container(k, signed))
        sliced = encode(q, k=k, window=window, zero_point=zero)
        found = run_encoder(q, sliced, lanes, rng if trial % 2 else None)
        steps = -(-columns // lanes)
        # One word a cycle and nothing between rows, then the flush: what a drain is charged.
        machine = replace(PRESETS["sparqle/edge"], drain_elements_per_cycle=lanes)
        op = DenseOp(rows, columns, 32, output="encoded", out_chunk=columns)
        header = Header(accelerator=machine, op=op, k_chunk=32)
        assert found["cycles"] == Drain.cycles(header, {"m": rows, "n": columns})
        planes = np.array(
            [[v >> lane * k & (1 << k) - 1 for lane in range(lanes)] for v in found["lsb"]]
        ).reshape(rows, steps * lanes)
        np.testing.assert_array_equal(planes[:, :columns], sliced.lsb_digits())
        assert not planes[:, columns:].any()
        bits = np.array([[v >> i & 1 for i in range(lanes)] for v in found["bits"]])
        bits = bits.reshape(rows, steps * lanes)
        np.testing.assert_array_equal(bits[:, :columns], sliced.mask())
        assert not bits[:, columns:].any()
        assert bytes(found["msb"]) == sliced.msb.tobytes()
        assert found["ends"] == sliced.row_ptr[1:].tolist()
        assert found["counts"] == sliced.row_nnz().tolist()


@pytest.mark.parametrize("k", [2, 4, 8])
def test_decoder_expands_every_row(k: int):
    """Signed digits of each step, zeros behind the last; as many cycles as steps, no bubbles."""
    rng = np.random.default_rng(k)
    lanes, low, high = 8, *bounds(k)
    q = rng.integers(low, high + 1, (6, 30))
    q = np.where(rng.random(q.shape) < rng.random((6, 1)), q, 0).astype(container(k))
    q[2] = 0
    sliced = encode(q, k=k)
    block, steps = Decoder(lanes, k), []
    stream = sliced.msb.tobytes() + bytes(lanes * k)
    words = [stream[i : i + lanes * k // 8] for i in range(0, len(stream), lanes * k // 8)]
    counts = sliced.row_nnz().tolist()

    async def process(ctx: Any) -> None:
        ctx.set(block.turn, 1 << k - 1)
        ctx.set(block.step_ready, 1)
        given = begun = cycles = 0
        while sum(last for _, last in steps) < len(counts):
            ctx.set(block.valid, given < len(words))
            ctx.set(block.word, int.from_bytes(words[min(given, len(words) - 1)], "little"))
            # Rows are handed over when two words are there.
            ctx.set(block.row_valid, begun < len(counts) and cycles >= 2)
            ctx.set(block.row_count, counts[min(begun, len(counts) - 1)])
            taken = ctx.get(block.ready) and given < len(words)
            begins = ctx.get(block.row_ready) and begun < len(counts) and cycles >= 2
            if ctx.get(block.step_valid):
                raw = ctx.get(block.digits)
                wide = [raw >> i * (k + 1) & (1 << k + 1) - 1 for i in range(lanes)]
                values = [v - (1 << k + 1) * (v >> k) for v in wide]
                steps.append((values, ctx.get(block.last)))
            await ctx.tick()
            given, begun, cycles = given + taken, begun + begins, cycles + 1
            assert cycles < 200
        # Two to fill, one to hand over the first row.
        assert cycles == 3 + sum(max(1, -(-count // lanes)) for count in counts)

    simulate(block, process)
    found: list[list[int]] = [[]]
    for values, last in steps:
        found[-1] += values
        if last:
            found.append([])
    for row, count, bits, digits in zip(
        found, counts, sliced.mask(), sliced.msb_digits(), strict=False
    ):
        assert row[:count] == digits[bits].tolist()
        assert not any(row[count:])
