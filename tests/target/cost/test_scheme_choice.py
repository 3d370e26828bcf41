"""What is left dense: by two times that anybody can compare, and never slower for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench_never_slower import random_accelerator

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.factors import EncodeFactors
from sparqle_tvm.target.cost.model import EncodedActivation, pass_cost
from sparqle_tvm.target.cost.scheme_choice import can_be_dense, cheaper, left_dense
from sparqle_tvm.target.cost.vector import TransformerShape
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
OP = DenseOp(64, 1024, 1024)


def digits(share: float, rows: int = 64, k: int = 1024) -> RowNnz:
    """Every row stores that share."""
    return RowNnz(np.full((rows, k // 8), round(8 * share), np.int32), 8, k)


def total(costs) -> int:
    encode, ops = costs
    return encode.total_cycles + sum(op.total_cycles for op in ops)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_smaller_time_wins(share: float) -> None:
    nnz = digits(share)
    split, dense = (encoding_costs("x", nnz, [OP], EDGE, s) for s in ("sparqle", "dense"))
    found = cheaper(split, dense, nnz, 4)
    assert (found is not None) == (total(dense) < total(split))
    if found is not None:
        assert (found.split_cycles, found.dense_cycles) == (total(split), total(dense))
        assert f"{total(dense):,} dense" in found.reason
        # Break-even of bytes: a quarter of the digits zero.
        assert ("planes are smaller" in found.reason) == (1 - share < 0.25)


def test_equal_times_are_decided_by_what_is_stored() -> None:
    dense = encoding_costs("x", digits(0), [OP], EDGE, "dense")
    assert cheaper(dense, dense, digits(1.0), 4) is not None
    assert cheaper(dense, dense, digits(0.5), 4) is None


def test_the_compiler_expects_digits() -> None:
    assert left_dense([OP], EDGE, density=0.05) is None
    found = left_dense([OP], EDGE, density=1.0)
    assert found is not None
    assert found.msb_sparsity < 0.05
    with_factors = left_dense([OP], EDGE, EncodeFactors(True, True), 1.0)
    assert with_factors is not None
    assert with_factors.dense_cycles >= found.dense_cycles


@pytest.mark.parametrize(
    "op",
    [
        replace(OP, act_signed=False, centre=100),
        replace(OP, row_zeros=True),
        replace(OP, output="encoded", out_chunk=64, out_low=-128, out_high=127),
    ],
)
def test_what_needs_another_offset_is_never_left_dense(op: DenseOp) -> None:
    assert not can_be_dense(op)
    assert left_dense([op], EDGE, density=1.0) is None
    assert can_be_dense(OP)


def test_a_pass_takes_what_the_compiler_chose() -> None:
    shape = TransformerShape(1, 1024, 1024, 8, 8, 128, 1000)
    both = [
        EncodedActivation(name, digits(0.1), "signed", (replace(OP, label=name),), density=share)
        for name, share in (("sparse", 0.1), ("full", 1.0))
    ]
    options = {"tokens": 64, "past": 0, "accelerator": EDGE}
    split, dense = (pass_cost(both, shape, scheme=s, **options) for s in ("sparqle", "dense"))
    assert [why is None for why in split.left] == [True, False]
    assert dense.left == (None, None)
    assert [op.scheme for op in split.ops] == ["sparqle", "dense"]
    assert (split.ops[1], split.encodes[1]) == (dense.ops[1], dense.encodes[1])
    assert split.ops[0].total_cycles < dense.ops[0].total_cycles


@pytest.mark.parametrize("sparsity", [0.1, "measured"])
def test_no_layer_is_slower_than_dense(sparsity: float | str) -> None:
    rng = np.random.default_rng(5)
    for number in range(4):
        machine = random_accelerator(rng, number)
        for phase in ("prefill", "decode"):
            found = estimate(
                "smollm2-135m",
                phase,
                seq=64,
                msb_sparsity=sparsity,
                target=machine,
                schemes=("dense", "sparqle"),
            )
            sums: dict[str, list[int]] = {}
            for part in [o for o in found.others if o.part == "encode"] + list(found.layers):
                kind = getattr(part, "type", part.label)
                costs = sums.setdefault(kind, [0, 0])
                for i, scheme in enumerate(("dense", "sparqle")):
                    costs[i] += part.times * part.costs[scheme].total_cycles
            assert all(split <= dense for dense, split in sums.values()), (machine, phase)
