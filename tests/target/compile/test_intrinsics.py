"""The tensor intrinsics: registered once per shape, description and call with the same operands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dense_cases import SPECS
from tvm.s_tir import TensorIntrin

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.intrinsics import PREFIX, SCOPES, get_intrinsic

TILE = (16, 8, 64)
COMMON = ["ld_wgt", "zero", "mma_lsb", "mma_msb", "drain", "store"]
NAMES = {
    "int32": [*COMMON, "ld_lsb", "ld_msb", "ld_offset"],
    "channel": [*COMMON, "ld_lsb", "ld_msb", "ld_row", "ld_channel", "ld_offset"],
    "minima": [*COMMON, "ld_lsb", "ld_msb", "ld_sums", "ld_row", "ld_scale", "ld_min", "mma_min"],
    "dense grouped": [*COMMON, "ld_act", "ld_sums", "ld_row", "ld_scale", "ld_min", "mma_min"],
}


def operands(function: object) -> list[tuple[tuple[int, ...], str, str]]:
    """Shape, dtype and scope of each parameter."""
    return [(tuple(int(e) for e in p.shape), str(p.dtype), str(p.scope())) for p in function.params]


@pytest.mark.parametrize("spec", NAMES)
def test_description_and_implementation_agree(spec: str) -> None:
    op = replace(SPECS[spec], has_offset=True)
    for name in NAMES[spec]:
        registered = TensorIntrin.get(get_intrinsic(name, op, TILE))
        assert operands(registered.desc) == operands(registered.impl)
        text = registered.impl.script()
        assert f'T.call_extern("int32", "{PREFIX}{name}"' in text
        assert "T.grid" not in text and "for " not in text


def test_operands_of_a_grouped_pass() -> None:
    registered = TensorIntrin.get(get_intrinsic("mma_msb", SPECS["minima"], TILE))
    assert operands(registered.desc) == [
        ((16, 8), "float64", SCOPES["acc"]),
        ((16, 64), "int8", SCOPES["msb"]),
        ((8, 64), "int8", SCOPES["w"]),
        ((8, 2), "float16", SCOPES["w_scale"]),
    ]


def test_operands_of_a_drain() -> None:
    spec = replace(SPECS["channel"], has_offset=True)
    registered = TensorIntrin.get(get_intrinsic("drain", spec, TILE))
    assert [shape for shape, _, _ in operands(registered.desc)] == [
        *((16, 8), (16, 8), (16, 8)),
        *((8,), (16,), (8,)),
    ]


def test_a_tile_comes_from_dram_and_goes_back() -> None:
    load = TensorIntrin.get(get_intrinsic("ld_wgt", SPECS["int32"], TILE))
    store = TensorIntrin.get(get_intrinsic("store", SPECS["int32"], TILE))
    assert [scope for _, _, scope in operands(load.desc)] == [SCOPES["w"], "global"]
    assert [scope for _, _, scope in operands(store.desc)] == ["global", SCOPES["acc"]]


def test_registered_once_and_by_what_matters() -> None:
    name = get_intrinsic("mma_lsb", SPECS["int32"], TILE)
    first = TensorIntrin.get(name)
    assert get_intrinsic("mma_lsb", SPECS["int32"], TILE) == name
    assert TensorIntrin.get(name).same_as(first)
    assert name.startswith("sparqle.mma_lsb_16x8x64_")
    others = {get_intrinsic("mma_lsb", SPECS[spec], TILE) for spec in ("minima", "dense")}
    assert len({name, *others, get_intrinsic("mma_lsb", SPECS["int32"], (16, 8, 32))}) == 4


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(CompileError, match="no intrinsic 'mma'; known: drain, ld_act"):
        get_intrinsic("mma", SPECS["int32"], TILE)
    with pytest.raises(CompileError, match="has no array 'offset'"):
        get_intrinsic("ld_offset", SPECS["int32"], TILE)
    with pytest.raises(CompileError, match="48 K columns splits groups of 32"):
        get_intrinsic("mma_lsb", SPECS["minima"], (16, 8, 48))
