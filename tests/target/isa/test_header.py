from __future__ import annotations

from dataclasses import replace

import pytest
from handmade import SMALL, make_header, with_op

from sparqle_tvm.errors import ProgramError
from sparqle_tvm.target.isa.header import Allocation, Engine, Queue
from sparqle_tvm.target.isa.operands import Address, Affine, Buffer

OP = make_header(20, 10, 48, 16).op


def test_every_queue_joins_two_engines_and_its_pair_goes_back():
    for free, ready in zip(list(Queue)[::2], list(Queue)[1::2], strict=True):
        assert free.name.endswith("_FREE")
        assert ready.name.endswith("_READY")
        assert (free.producer, free.consumer) == (ready.consumer, ready.producer)
        assert free.producer != free.consumer
    assert Queue.ACC_READY.producer == Engine.MMA
    assert Queue.ACC_READY.consumer == Engine.STORE


def test_sizes_that_follow():
    # 40 columns in chunks of 16: 16 + 16 + 8. 8-bit weights are two slices of 4-bit digits.
    header = make_header(8, 4, 40, 16, weight_bits=8, group_size=8, has_min=True, has_offset=True)
    assert (header.chunks, header.op.weight_slices, header.op.digit_bits) == (3, 2, 4)
    assert (header.accumulator_bytes, header.sum_bytes, header.channel_bytes) == (8, 2, 8)
    assert header.output_bytes == SMALL.float_bytes == 2
    assert make_header(8, 4, 512, 512, group_size=256).sum_bytes == 4
    plain = make_header(8, 4, 40, 16, has_offset=True)
    assert (plain.accumulator_bytes, plain.channel_bytes) == (4, 8)
    assert with_op(plain, output="int32").channel_bytes == 4
    assert with_op(plain, output="int32").output_bytes == 4
    assert make_header(8, 4, 40, 16).channel_bytes == 4
    assert make_header(8, 4, 40, 16, output="int32").channel_bytes == 0


def test_a_scratchpad_is_divided_by_its_program():
    # 8192 + 8192 + 16384 bytes in all: 20000 of ACT leave 12768 for WGT, and 768 beside 12000.
    whole = replace(SMALL, scratchpad=True)
    header = make_header(20, 10, 48, 16, whole)
    assert {header.buffer_bytes(buffer) for buffer in Buffer} == {32768}
    act = Allocation("act", Buffer.ACT, 0, 1, 20000)
    wgt = Allocation("wgt", Buffer.WGT, 0, 1, 12000)
    assert replace(header, allocations=(act,)).buffer_bytes(Buffer.WGT) == 12768
    both = replace(header, allocations=(act, wgt))
    assert both.buffer_bytes(Buffer.ACC) == 768
    with pytest.raises(ProgramError, match="ends at byte 20000 of ACT, which has 19999"):
        replace(both, allocations=(act, wgt, Allocation("ACC", Buffer.ACC, 0, 1, 769)))


def test_an_allocation_gives_addresses():
    allocation = Allocation("a", Buffer.ACT, 64, 2, 32)
    assert allocation.end == 128
    assert allocation.at((1,), 4) == Address(Buffer.ACT, 64, (1,), 2, 32, Affine(4))
    assert Allocation("a", Buffer.ACT, 64, 1, 32).at((1,)) == Address(Buffer.ACT, 64)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"k_chunk": 16.0}, "k_chunk = 16.0"),
        ({"k_chunk": 0}, "k_chunk = 0 must be a positive whole number"),
        ({"k_chunk": 12}, "must be a multiple of 8, or at least 48"),
        ({"op": replace(OP, group_size=12)}, "k_chunk = 16 must be a multiple of 24"),
        ({"op": replace(OP, digit_bits=8)}, "digits of 8 bits, the machine of 4"),
        ({"op": replace(OP, block_rows=6)}, "block_rows = 6 is not a multiple of 4"),
        ({"tokens": (1,)}, f"tokens must be {len(Queue)}"),
        ({"tokens": (-1,) * len(Queue)}, f"tokens must be {len(Queue)}"),
        ({"allocations": (Allocation("x", Buffer.ACT, 0, 2, 8192),)}, "'x' ends at byte 16384"),
        ({"allocations": (Allocation("x", Buffer.ACT, -1, 2, 8),)}, "must be whole numbers"),
        (
            {
                "allocations": (
                    Allocation("x", Buffer.ACT, 0, 2, 8),
                    Allocation("y", Buffer.ACT, 15, 1, 8),
                )
            },
            "'x' and 'y' overlap",
        ),
        ({"accelerator": replace(SMALL, dma_descriptor_cycles=2**31)}, "cycles is too large"),
    ],
)
def test_a_header_that_does_not_hold_together_is_refused(fields, match):
    with pytest.raises(ProgramError, match=match):
        replace(make_header(20, 10, 48, 16), **fields)
