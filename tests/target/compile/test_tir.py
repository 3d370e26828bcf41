"""The split dense op as S-TIR: exact on the host, padded, and refused where it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dense_cases import SPECS, expected, random_operands, run_primfunc
from tvm import s_tir

from sparqle_tvm.errors import CompileError
from sparqle_tvm.target.compile.tir import EXTENT_ATTR, split_dense_primfunc
from sparqle_tvm.target.op import DenseOp


@pytest.mark.parametrize("name", SPECS)
def test_primfunc_is_exact(name: str) -> None:
    spec = SPECS[name]
    operands = random_operands(spec, seed=1)
    out = run_primfunc(split_dense_primfunc(spec), spec, operands)
    np.testing.assert_array_equal(out, expected(spec, operands))


def test_padding_changes_nothing() -> None:
    spec, multiple = SPECS["minima"], (8, 16, 64)
    operands = random_operands(spec, seed=2)
    function = split_dense_primfunc(spec, multiple)
    out = run_primfunc(function, spec, operands, multiple)
    np.testing.assert_array_equal(out, expected(spec, operands))


def test_extent_says_what_is_real() -> None:
    function = split_dense_primfunc(DenseOp(m=5, n=9, k=40), (4, 16, 32))
    assert [int(extent) for extent in function.attrs[EXTENT_ATTR]] == [5, 9, 40]
    assert [int(extent) for extent in function.params[0].shape] == [8, 64]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("int32", ["drain", "mma_lsb", "mma_msb"]),
        ("minima", ["drain", "mma_lsb", "mma_min", "mma_msb"]),
        ("dense", ["drain", "mma_lsb", "mma_msb"]),
    ],
)
def test_every_pass_is_a_block(name: str, blocks: list[str]) -> None:
    sch = s_tir.Schedule(split_dense_primfunc(SPECS[name]))
    found = [sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))]
    assert sorted(found) == blocks


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"group_size": 32}, "K = 40 is not a multiple of group_size = 32"),
        ({"weight_bits": 8, "weight_signed": False}, "do not fit int8"),
    ],
)
def test_ops_without_a_function_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(CompileError, match=problem):
        split_dense_primfunc(DenseOp(m=4, n=4, k=40, **fields))
