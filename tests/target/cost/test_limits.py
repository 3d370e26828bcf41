"""What limits the time: by hand, in sums, and by formula as on the simulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.studies.simulated import simulate_op
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.library import ProgramLibrary
from sparqle_tvm.target.cost.analytical import encoding_costs
from sparqle_tvm.target.cost.array import msb_pass_waits
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES
from sparqle_tvm.target.cost.limits import CHANNEL, LIMITS, add, divide
from sparqle_tvm.target.cost.vector import TransformerShape, vector_costs
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]


def digits(m: int, k: int, density: float = 0.3) -> RowNnz:
    rng = np.random.default_rng(m * k)
    share = rng.uniform(0.5, 1.5, (m, 1)) * density
    mask = rng.random((m, k)) < share
    return RowNnz.from_pbm(np.packbits(mask, axis=1, bitorder="little"), k)


def shown(limits) -> dict[str, int]:
    return {name: cycles for name, cycles in limits.items() if cycles}


ARRAY = {"array": 70.0, "waiting_rows": 10.0}
MOVED = {"weights": 30.0, "activations": 10.0, "descriptors": 20.0}


def test_by_hand_if_the_array_is_busiest():
    # 80 of 100 cycles at work; 8 to fill; 12 that it waits for others: of 60 + 20 cycles of theirs
    # the weights have 30, the drain 20.
    found = divide(100, [ARRAY, MOVED, {"drain": 20.0}], begin=5, end=3)
    assert shown(found) == {
        **{"array": 70, "waiting_rows": 10, "fill": 8},
        # 12 * 30/80 = 4.5, 1.5, 3, 3: of the halves the first is rounded up, 4.5 + 1.5 = 5 + 1.
        **{"weights": 5, "activations": 1, "descriptors": 3, "drain": 3},
    }
    # What it waits for is known: for weights 14 cycles, 5 of them at the begin, for the drain 3.
    waits = {"weights": 14.0, "drain": 3.0}
    found = divide(100, [ARRAY, MOVED, {"drain": 20.0}], 5, 3, waits)
    assert (found["weights"], found["drain"], found["activations"]) == (9, 3, 0)


def test_by_hand_if_the_channel_is_busiest():
    # 60 of 66 cycles; of the rest 40 : 8 : 0 for array and drain. Nothing fills.
    found = divide(66, [{"array": 40.0}, MOVED, {"drain": 8.0}], 5, 3, waits={"weights": 1.0})
    assert shown(found) == {
        **{"weights": 30, "activations": 10, "descriptors": 20},
        **{"array": 5, "drain": 1},
    }


def test_the_first_of_equally_busy_engines_counts():
    found = divide(60, [{"array": 60.0}, MOVED, {"drain": 60.0}])
    assert shown(found) == {"array": 60}


WORK = st.dictionaries(st.sampled_from(LIMITS), st.floats(0, 1e9), min_size=1, max_size=4)


@given(
    total=st.integers(0, 10**12),
    engines=st.lists(WORK, min_size=1, max_size=3),
    begin=st.floats(0, 1e9),
    end=st.floats(0, 1e9),
    waits=st.none() | WORK,
)
def test_the_sum_is_the_total_whatever_it_is_made_of(total, engines, begin, end, waits):
    found = divide(total, engines, begin, end, waits)
    assert tuple(found) == LIMITS
    assert sum(found.values()) == total
    assert min(found.values()) >= 0


def test_add_counts_every_part_as_often_as_it_occurs():
    one, other = divide(7, [{"array": 7.0}]), divide(5, [{"drain": 5.0}])
    assert shown(add([(one, 2), (other, 3)])) == {"array": 14, "drain": 15}
    assert not shown(add([]))


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 96, 256), (40, 96, 256), (200, 520, 1056)])
def test_every_op_and_encoding_adds_up(scheme, m, n, k):
    readers = (DenseOp(m, n, k, 4, 32, True, "q"), DenseOp(m, n // 2, k, 4, 32, True, "k"))
    block = EDGE.rows if scheme == "sparqle" and m > EDGE.rows else 0
    encode, ops = encoding_costs("x", digits(m, k), readers, EDGE, scheme, block)
    for cost in (encode, *ops):
        assert sum(cost.limits.values()) == cost.total_cycles
        assert min(cost.limits.values()) >= 0
        assert not cost.limits["kv_cache"]
    assert all(not op.limits["encode"] for op in ops)
    assert encode.limits["array"] == encode.limits["drain"] == encode.limits["weights"] == 0
    for op in ops:
        assert (op.waiting_cycles > 0) == (scheme == "sparqle" and m > 1)


def test_the_vector_unit_adds_up_and_knows_its_cache():
    shape = TransformerShape(layers=2, embed=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=20)
    costs = {c.label: c for c in vector_costs(shape, 1, 4096, EDGE)}
    for cost in costs.values():
        assert sum(cost.limits.values()) == cost.total_cycles
    attention = costs["attention"]
    if attention.dma_cycles > attention.vector_cycles:
        assert attention.limits["kv_cache"] > 0.9 * attention.total_cycles
    else:
        assert attention.limits["vector"] == attention.vector_cycles


def test_waiting_rows_by_hand(tiny):
    # Rows of a group of `tiny.rows` need 1 to `tiny.rows` steps: the slowest waits for none.
    m, k = tiny.rows, 8 * tiny.lanes
    nnz = RowNnz(np.arange(1, m + 1, dtype=np.int32)[:, None] * tiny.lanes, k, k)
    op = DenseOp(m, tiny.cols, k, 4, label="x")
    waits = sum(m - steps for steps in range(1, m + 1)) / m
    assert msb_pass_waits(op, nnz, k, tiny) == round(waits * op.weight_slices)
    even = RowNnz(np.full((m, 1), tiny.lanes, np.int32), k, k)
    assert msb_pass_waits(op, even, k, tiny) == 0


@pytest.mark.parametrize("scheme", ["dense", "sparqle"])
@pytest.mark.parametrize(
    ("m", "n", "k", "bandwidth", "descriptor_cycles", "most"),
    [
        (128, 256, 512, 1000.0, 32, "array"),
        (128, 256, 512, 2.0, 32, "activations"),
        (16, 768, 1024, 2.0, 32, "weights"),
        (1, 768, 1024, 4000.0, 4096, "descriptors"),
    ],
)
def test_formula_and_simulator_agree(scheme, m, n, k, bandwidth, descriptor_cycles, most):
    machine = {"dram_bytes_per_cycle": bandwidth, "dma_descriptor_cycles": descriptor_cycles}
    accelerator = replace(EDGE, **machine)
    op, nnz = DenseOp(m, n, k, 4, 32, True, "x"), digits(m, k)
    _, (formula,) = encoding_costs("x", nnz, (op,), accelerator, scheme)
    ran = simulate_op(op, nnz, scheme, ProgramLibrary(accelerator))
    assert sum(ran.limits.values()) == ran.total_cycles
    assert max(LIMITS, key=ran.limits.__getitem__) == most
    assert max(LIMITS, key=formula.limits.__getitem__) == most
    for name in LIMITS:
        share, counted = (x.limits[name] / x.total_cycles for x in (formula, ran))
        assert share == pytest.approx(counted, abs=0.05), name
    assert ran.mma_cycles == formula.mma_cycles
    if most == "array":
        assert ran.limits["waiting_rows"] == pytest.approx(formula.waiting_cycles, abs=1)
    if most in CHANNEL:
        bytes_cycles = ran.weight_bytes / bandwidth
        assert ran.limits["weights"] == pytest.approx(bytes_cycles, rel=0.05, abs=64)
