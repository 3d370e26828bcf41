"""Tile sizes and exactness bounds of the host kernels."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx

from sparqle_tvm.errors import CompileError
from sparqle_tvm.host.register_tile import (
    EXACT_FLOAT32,
    HostTile,
    block_rows,
    host_tile,
    largest_divisor,
    largest_weight,
    plane_chunk,
    static_int,
)


@pytest.mark.parametrize(
    ("mcpu", "tile"),
    [
        ("x86-64", HostTile(4, 6)),
        ("haswell", HostTile(8, 6)),
        ("znver3", HostTile(8, 6)),
        ("skylake-avx512", HostTile(16, 12)),
    ],
)
def test_tile_follows_the_processor(mcpu: str, tile: HostTile) -> None:
    target = tvm.target.Target(
        {"kind": "llvm", "mcpu": mcpu, "mtriple": "x86_64-unknown-linux-gnu"}
    )
    assert host_tile(target) == tile
    with target:
        assert host_tile() == tile


def test_tile_without_target_suits_every_processor() -> None:
    assert host_tile() == HostTile(4, 6)


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("centred_on_zero", [True, False])
def test_a_chunk_is_exact_in_float32(k: int, bits: int, centred_on_zero: bool) -> None:
    digit = 2 ** (k - 1) if centred_on_zero else 2**k - 1
    columns, merge = plane_chunk(k, bits, digit)
    weight = largest_weight(bits)
    # MSB digits carry the factor 2^k, a power of two: it costs no significant bits.
    lsb, msb = columns * (2**k - 1) * weight, columns * digit * weight
    assert columns >= 1
    assert lsb <= EXACT_FLOAT32
    assert msb <= EXACT_FLOAT32
    assert msb * 2**k < 2**31
    if merge:
        assert lsb + msb * 2**k <= EXACT_FLOAT32


def test_largest_divisor() -> None:
    # 1000 = 2^3 * 5^3; 500 is its largest divisor up to 916.
    assert largest_divisor(1000, 916) == 500
    assert largest_divisor(32, 916) == 32
    assert largest_divisor(997, 916) == 1


def test_block_rows_is_a_multiple_and_bounded() -> None:
    for row_bytes in (0, 8, 4608, 10**7):
        rows = block_rows(row_bytes, 3)
        assert rows % 3 == 0
        assert 24 <= rows <= 256


def test_static_int_refuses_symbolic_dimensions() -> None:
    assert static_int(tirx.IntImm("int64", 3), "N") == 3
    with pytest.raises(CompileError, match="N is symbolic"):
        static_int(tirx.Var("n", "int64"), "N")
