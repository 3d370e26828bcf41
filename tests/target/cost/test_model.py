"""Whole models: vector-unit work by hand, sums over ops."""

import numpy as np
import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.limits import LIMITS
from sparqle_tvm.target.cost.model import EncodedActivation, Totals, pass_cost
from sparqle_tvm.target.cost.vector import TransformerShape, attended_pairs, vector_costs
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]
SHAPE = TransformerShape(layers=2, embed=8, ffn=12, heads=2, kv_heads=1, head_dim=4, vocab=20)


def test_attended_pairs():
    assert attended_pairs(3, 0) == 1 + 2 + 3
    assert attended_pairs(1, 9) == 10
    assert attended_pairs(2, 5) == 6 + 7


def test_vector_work_by_hand(tiny):
    costs = {c.label: c for c in vector_costs(SHAPE, tokens=3, past=5, accelerator=tiny)}
    # Pairs 6 + 7 + 8 = 21, two heads, 4 channels, QK and PV; per layer 336 MACs, 42 scores
    attention = costs["attention"]
    assert attention.macs == 2 * (21 * 2 * 4 * 2)
    assert attention.operations == 2 * (42 * 6)
    # Queries 3 * 8 * 2 bytes, keys and values of 8 tokens * 4 channels * 1 byte each
    assert attention.read_bytes == 2 * (48 + 2 * 32)
    # 336/8 + 252/4 = 105 cycles, 112/4 = 28 of traffic, in each of two layers
    assert (attention.vector_cycles, attention.dma_cycles) == (210, 56)
    assert (attention.total_cycles, attention.bound) == (210, "compute")
    # Residuals and norms: 2 * 2 times 24 elements, what is added read, the sum written in 2 bytes;
    # 1 operation to add, 4 of the norm
    both = costs["norms and residuals"]
    assert both.operations == 4 * 24 * 5
    assert (both.read_bytes, both.write_bytes) == (4 * 96, 4 * 48)
    # RoPE of 24 query and 12 key elements; reads those and the values, writes queries in 2 bytes,
    # keys and values in 1
    rope = costs["rope and cache"]
    assert (rope.operations, rope.read_bytes, rope.write_bytes) == (2 * 108, 2 * 96, 2 * 72)
    assert costs["swiglu"].read_bytes == 2 * (2 * 36 * 2)
    assert (costs["final norm"].operations, costs["final norm"].dram_bytes) == (8 * 4, 0)
    assert costs["embedding"].dram_bytes == 2 * 48


def test_vector_work_beside_attention_on_the_array(tiny):
    options = {"tokens": 3, "past": 5, "accelerator": tiny, "attention": False}
    costs = {c.label: c for c in vector_costs(SHAPE, **options)}
    assert "attention" not in costs
    rope = costs["rope and cache"]
    # Queries, keys and values of 24 + 12 + 12 elements are quantized: 2 operations each. Keys and
    # values are 24 bytes and 3 times 2 scales of 4, queries 24 bytes and 3 * 2 factors of 4.
    assert rope.operations == 2 * (108 + 2 * 48)
    assert (rope.read_bytes, rope.write_bytes) == (2 * 96, 2 * (24 + 24 + 24 + 24))
    assert rope.cache_bytes == 2 * 48
    # Planes of queries: one operation more on each of 24 elements.
    split = {c.label: c for c in vector_costs(SHAPE, **options, scheme="sparqle")}
    assert split["rope and cache"].operations == rope.operations + 2 * 24


def test_kv_bits_change_only_the_cache(tiny):
    wide = TransformerShape(**{**vars(SHAPE), "kv_bits": 16})
    for a, b in zip(vector_costs(SHAPE, 1, 7, tiny), vector_costs(wide, 1, 7, tiny), strict=True):
        assert (a.label in ("attention", "rope and cache")) == (a.dram_bytes != b.dram_bytes)


@pytest.mark.parametrize(("tokens", "past"), [(0, 0), (1, -1)])
def test_no_tokens(tiny, tokens, past):
    with pytest.raises(InvalidArgumentError, match="cannot be counted"):
        vector_costs(SHAPE, tokens, past, tiny)


def test_wrong_sizes():
    with pytest.raises(InvalidArgumentError, match="heads = 0 must be positive"):
        TransformerShape(**{**vars(SHAPE), "heads": 0})


def encodings(m: int) -> list[EncodedActivation]:
    mask = np.random.default_rng(0).random((m, 64)) < 0.3
    nnz = RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), 64)
    shapes = (DenseOp(m, 32, 64, 4, 32, True, "q"), DenseOp(m, 16, 64, 4, 32, True, "k"))
    return [
        EncodedActivation("x", nnz, "signed", shapes),
        EncodedActivation("y", nnz, "unsigned", (DenseOp(m, 64, 64, 8, label="out"),)),
    ]


@pytest.mark.parametrize("scheme", ["sparqle", "dense"])
def test_parts_add_up(scheme):
    cost = pass_cost(encodings(20), SHAPE, tokens=20, past=0, accelerator=EDGE, scheme=scheme)
    assert [op.label for op in cost.ops] == ["q+k", "out"]
    assert [encode.label for encode in cost.encodes] == ["x", "y"]
    vector_cycles = sum(v.total_cycles for v in cost.vector)
    vector_bytes = sum(v.dram_bytes for v in cost.vector)
    assert cost.whole_model.cycles == cost.dense_layers.cycles + vector_cycles
    assert cost.whole_model.dram_bytes == cost.dense_layers.dram_bytes + vector_bytes
    assert cost.mma_cycles == sum(op.lsb_cycles + op.msb_cycles for op in cost.ops)
    totals = cost.whole_model
    parts = (*cost.ops, *cost.encodes, *cost.vector)
    assert totals.limits == {name: sum(part.limits[name] for part in parts) for name in LIMITS}
    assert sum(totals.limits.values()) == totals.cycles


def test_vector_work_does_not_depend_on_the_scheme():
    costs = [
        pass_cost(encodings(4), SHAPE, tokens=4, past=0, accelerator=EDGE, scheme=scheme)
        for scheme in ("sparqle", "dense")
    ]
    assert costs[0].vector == costs[1].vector


def test_last_token():
    (first, _) = encodings(5)
    last = first.last_token()
    assert [shape.m for shape in last.consumers] == [1, 1]
    assert last.nnz.total == first.nnz.counts[-1].sum()
    assert first.macs == 5 * last.macs


def test_empty_sum():
    assert Totals.of([]) == Totals(0, 0, dict.fromkeys(LIMITS, 0))
