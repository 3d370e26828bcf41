"""Tensors in DRAM: packing of weights and activations, digits in tile order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_programs import TINY, header_for, random_operands

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics import encode, pack_digits, unpack_digits
from sparqle_tvm.target.isa.access import Tensor
from sparqle_tvm.target.simulator import (
    activation_tensors,
    pack_activations,
    pack_weights,
    tensor_formats,
    tile_order,
    weight_tensors,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tile_order_holds_the_same_digits(data):
    digit_bits = data.draw(st.sampled_from([2, 4, 8]))
    rows, columns = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 100))
    chunk = data.draw(st.sampled_from([16, 48, 104]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    header = header_for(replace(TINY, digit_bits=digit_bits), 30, 4, columns, chunk)
    limit = 2 ** (2 * digit_bits - 1)
    q = rng.integers(-limit, limit, (rows, columns))
    q = np.where(rng.random(q.shape) < 0.5, 0, q).astype(np.int16 if digit_bits == 8 else np.int8)
    sliced = encode(q, k=digit_bits)
    msb, pointers = tile_order(header, sliced.pbm, sliced.msb, sliced.row_ptr)
    # Written down by the definition: chunk by chunk, row by row, each padded to a byte.
    digits, mask = sliced.msb_digits(), sliced.mask()
    parts, expected_pointers = [], []
    for begin in range(0, columns, chunk):
        for row in range(rows):
            if row % TINY.rows == 0:
                expected_pointers.append(sum(len(part) for part in parts))
            span = slice(begin, begin + chunk)
            stored = digits[row, span][mask[row, span]]
            # The largest digit shares its nibble with the smallest one: its code is 0.
            codes = np.where(stored == 2 ** (digit_bits - 1), 0, stored & (2**digit_bits - 1))
            parts.append(pack_digits(codes.astype(np.uint8), digit_bits))
    expected = np.concatenate([np.empty(0, np.uint8), *parts])
    np.testing.assert_array_equal(msb, expected)
    np.testing.assert_array_equal(pointers, [*expected_pointers, len(expected)])
    assert pointers.dtype == np.int32


def test_tile_order_ignores_what_is_behind_the_stream():
    header = header_for(TINY, 8, 4, 64, 32)
    sliced = encode(np.full((8, 64), 100, dtype=np.int8))
    padded = np.append(sliced.msb, np.full(100, 0xFF, dtype=np.uint8))
    tiled, _ = tile_order(header, sliced.pbm, padded, sliced.row_ptr)
    assert (unpack_digits(tiled, 4, tiled.size * 2) == (100 + 8) >> 4).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_low_element_first(bits):
    values = np.array([[-1, 1, 0, -2, 1]], dtype=np.int8)
    packed = pack_weights(values, bits)
    assert packed.shape == (1, -(-5 * bits // 8))
    stored = unpack_digits(packed, bits, 5)
    np.testing.assert_array_equal(stored, values.view(np.uint8) & np.uint8(2**bits - 1))


@pytest.mark.parametrize(("k", "expected"), [(2, [0x2F]), (4, [0xFF, 0x02]), (8, [255, 255, 2, 0])])
def test_activations_low_element_first(k, expected):
    q = np.array([[-1, 2]], dtype=np.int16 if k == 8 else np.int8)
    np.testing.assert_array_equal(pack_activations(q, k), [expected])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": "int32"},
        {"group_size": 16, "has_min": True},
        {"scheme": "dense", "window": "unsigned"},
    ],
)
def test_tensors_have_the_formats_of_the_op(options):
    header = header_for(TINY, 9, 7, 48, 16, **options)
    tensors = random_operands(np.random.default_rng(0), header, 9).tensors
    for tensor, (shape, dtype) in tensor_formats(header, 9).items():
        if tensor != Tensor.OUT:
            assert tensors[tensor].dtype == dtype, tensor
            assert tensor == Tensor.MSB or tensors[tensor].shape == shape, tensor


def test_large_groups_have_wide_sums():
    header = header_for(TINY, 2, 4, 512, 512, group_size=256, has_min=True)
    tensors = activation_tensors(header, encode(np.full((2, 512), 127, dtype=np.int8)))
    np.testing.assert_array_equal(tensors[Tensor.GROUP_SUMS], np.full((2, 2), 127 * 256))
    assert tensors[Tensor.GROUP_SUMS].dtype == np.int32


def test_operands_of_another_op_are_refused():
    header = header_for(TINY, 9, 7, 48, 16)
    operands = random_operands(np.random.default_rng(0), header, 9)
    with pytest.raises(InvalidArgumentError, match="takes activations"):
        activation_tensors(header, encode(operands.q, window="unsigned"))
    with pytest.raises(InvalidArgumentError, match=r"takes activations.*, 0\), got .*, 3\)"):
        activation_tensors(header, encode(operands.q, zero_point=3))
    with pytest.raises(InvalidArgumentError, match=r"takes activations.*one per row"):
        activation_tensors(header, encode(operands.q, zero_point=np.arange(9)))
    with pytest.raises(InvalidArgumentError, match=r"takes activations.*False, 'signed', 8"):
        activation_tensors(header, encode(operands.q.view(np.uint8)))
    with pytest.raises(InvalidArgumentError, match="takes weights"):
        weight_tensors(header_for(TINY, 9, 8, 48, 16), operands.weights)
    with pytest.raises(InvalidArgumentError, match=r"and no offset, .* and one"):
        weight_tensors(header, operands.weights, np.zeros(7, np.int32))
