"""How keys and values are stored, and the bits that it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.kv_cache import (
    PLAIN_INT8,
    HeadStorage,
    KvStorage,
    load_rows,
    parse_kv,
    plain,
    prefers_planes,
    store_rows,
    stored_digits,
    with_factor,
)


@pytest.mark.parametrize("bits, levels", [(8, 127), (6, 31), (5, 15), (4, 7), (2, 1)])
def test_plain_integers(bits, levels):
    storage = plain(bits)
    assert storage == HeadStorage(levels, "-")
    assert storage.plain_bits == storage.mean_bits(0.9) == bits


@pytest.mark.parametrize("factor, levels", [(1, 127), (2, 63), (3, 42), (4, 31), (127, 1)])
def test_planes_with_a_factor(factor, levels):
    storage = with_factor(factor)
    assert storage.levels == levels and storage.in_planes(3)
    # 4 bits and one of the bitmap for all, 4 bits for a stored high digit.
    assert storage.mean_bits(1.0) == 5 and storage.mean_bits(0.0) == 9
    assert storage.mean_bits(0.75) == 6


@pytest.mark.parametrize("what", ["key", "value"])
@pytest.mark.parametrize("width", [64, 100, 128])
def test_planes_are_preferred_where_they_take_fewer_bytes(what, width):
    """Held to rows as they are stored: pointers of 4 bytes, for 8 keys or for each value."""
    rng = np.random.default_rng(width)
    for sparsity in (0.2, 0.25, 0.3, 0.35, 0.4):
        high = rng.random((400, width)) >= sparsity
        values = np.where(high, 100, rng.integers(-8, 8, high.shape)).astype(np.int8)
        stored = store_rows(values, 8, True)
        taken = stored.begins[-1] / 400 + (4 / 8 if what == "key" else 4)
        found = 1 - stored_digits(stored.stream, stored.begins, width).mean() / width
        if abs(taken - width) > 0.5:
            assert prefers_planes(what, width, found) == (taken < width), (sparsity, taken)
    assert prefers_planes("key", 64, 0.3) and not prefers_planes("value", 64, 0.3)


def test_a_letter_per_head():
    storage = HeadStorage(127, "p-p")
    assert [storage.in_planes(head) for head in range(3)] == [True, False, True]
    assert [storage.mean_bits(0.5, head) for head in range(3)] == [7, 8, 7]


@pytest.mark.parametrize(
    "text, storage",
    [
        ("int8", PLAIN_INT8),
        ("int5", KvStorage(plain(5), plain(5))),
        ("planes", KvStorage(HeadStorage(127, "p"), HeadStorage(127, "-"))),
        ("planes:4", KvStorage(HeadStorage(31, "p"), HeadStorage(127, "-"))),
        ("planes:3,1.5", KvStorage(HeadStorage(42, "p"), HeadStorage(84, "p"))),
    ],
)
def test_what_a_user_says(text, storage):
    assert parse_kv(text) == storage


@pytest.mark.parametrize(
    "text",
    ["", "int7", "int8:2", "planes:", "planes:x", "planes:1,2,3", "planes:0.5", "planes:nan"],
)
def test_what_is_refused(text):
    with pytest.raises(InvalidArgumentError, match=r"is no storage|factor of"):
        parse_kv(text)


@pytest.mark.parametrize("levels, planes", [(0, "-"), (128, "p"), (127, ""), (127, "px")])
def test_storage_refuses(levels, planes):
    with pytest.raises(InvalidArgumentError, match=r"levels=|planes="):
        HeadStorage(levels, planes)


@pytest.mark.parametrize("bits", [1, 9])
def test_widths_that_are_none(bits):
    with pytest.raises(InvalidArgumentError, match="plain keys and values have 2 to 8"):
        plain(bits)


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 20),
    width=st.integers(1, 33),
    bits=st.integers(2, 8),
    planes=st.booleans(),
)
def test_what_is_stored_is_loaded(seed, tokens, width, bits, planes):
    rng = np.random.default_rng(seed)
    limit = 2 ** (bits - 1)
    values = rng.integers(-limit, limit, (tokens, width)).astype(np.int8)
    rows = store_rows(values, bits, planes)
    assert np.array_equal(load_rows(rows.stream, rows.begins, width, bits, planes), values)
    # Some of them alone.
    first, last = sorted(rng.integers(0, tokens + 1, 2).tolist())
    some = load_rows(rows.stream, rows.begins[first : last + 1], width, bits, planes)
    assert np.array_equal(some, values[first:last])


def test_a_token_is_appended_and_nothing_is_written_again():
    rng = np.random.default_rng(0)
    values = rng.integers(-128, 128, (9, 13)).astype(np.int8)
    for bits, planes in ((8, True), (8, False), (5, False)):
        some = (values >> (8 - bits)) if not planes else values
        stream = np.concatenate([store_rows(token[None], bits, planes).stream for token in some])
        assert np.array_equal(stream, store_rows(some, bits, planes).stream)


def test_a_row_in_planes_by_hand():
    # Window -8..7: 3, -8 and 7 have no high digit, 8 and -9 have; 20 is 16 + 4.
    values = np.array([[3, -8, 7], [8, -9, 20]], np.int8)
    rows = store_rows(values, 8, True)
    # Stored low digits are (v + 8) mod 16: 11, 0, 15 and 0, 15, 12.
    assert rows.stream[:3].tolist() == [11, 15, 0b000]
    assert rows.stream[3:6].tolist() == [0 + 16 * 15, 12, 0b111]
    # High digits 1, -1 and 1, the last byte half full.
    assert rows.stream[6:].tolist() == [1 + 16 * 15, 1]
    assert rows.begins.tolist() == [0, 3, 8]
    assert stored_digits(rows.stream, rows.begins, 3).tolist() == [0, 3]
