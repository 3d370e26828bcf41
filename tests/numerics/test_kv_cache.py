"""How keys and values are stored, and the bits that it takes."""

from __future__ import annotations

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.kv_cache import (
    PLAIN_INT8,
    HeadStorage,
    KvStorage,
    parse_kv,
    plain,
    prefers_planes,
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


def test_planes_are_smaller_than_8_bits_from_a_quarter_of_zeros_on():
    assert [prefers_planes(s) for s in (0.24, 0.25, 0.26)] == [False, False, True]


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
