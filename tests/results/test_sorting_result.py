"""What sorting rows brings, counted and in words."""

from __future__ import annotations

import dataclasses

import numpy as np
from run_result_helper import EDGE, SHAPE, encodings, passes, run_result
from test_run_document import printed
from tie import draw_digits

from sparqle_tvm.results.run import SortingResult
from sparqle_tvm.studies.count import count_phases, count_sorting
from sparqle_tvm.target.cost.model import EncodedActivation, pass_cost
from sparqle_tvm.target.op import DenseOp


def test_a_pass_beside_itself_with_rows_in_order() -> None:
    nnz = draw_digits(np.random.default_rng(0), 0.3, 96, 320)
    shape = DenseOp(96, 1536, 320, label="blk_0_attn_q")
    both = [EncodedActivation("a", nnz, "signed", (shape,)), *encodings(96)]
    prefill, _ = count_phases(both, SHAPE, EDGE)
    found = count_sorting(prefill, both, SHAPE, EDGE, "analytical", "array")
    blocks = [e.block_rows(EDGE) for e in both]
    assert found.encodings == 5
    assert found.sorted_encodings == sum(block > 0 for block in blocks) > 0
    assert found.block_rows == tuple(sorted({block for block in blocks if block}))
    options = {"tokens": 96, "past": 0, "accelerator": EDGE, "scheme": "sparqle"}
    in_order = pass_cost(both, SHAPE, **options, balance="none")
    assert found.mma_cycles < found.mma_cycles_in_order == in_order.mma_cycles
    assert found.layer_cycles_in_order == in_order.dense_layers.cycles
    assert found.layer_cycles == prefill.schemes["sparqle"].dense_layers.cycles


def test_what_is_said() -> None:
    assert "own order" not in printed(run_result())
    prefill, _ = passes()
    alike = count_sorting(prefill, encodings(24), SHAPE, EDGE, "analytical", "array")
    assert alike == SortingResult(
        "array",
        0,
        4,
        (),
        *[prefill.schemes["sparqle"].mma_cycles] * 2,
        *[prefill.schemes["sparqle"].dense_layers.cycles] * 2,
    )
    assert "Rows stay in their own order: sorting them would not pay." in printed(
        run_result(balance=alike)
    )
    off = dataclasses.replace(alike, goal="none")
    assert "sorting them is switched off" in printed(run_result(balance=off))
    dense_cycles = prefill.schemes["dense"].mma_cycles
    ordered = dataclasses.replace(
        alike,
        sorted_encodings=3,
        block_rows=(32, 64),
        mma_cycles_in_order=dense_cycles * 3 // 4,
        mma_cycles=dense_cycles * 2 // 3,
        layer_cycles=alike.layer_cycles_in_order * 101 // 100,
    )
    text = printed(run_result(balance=ordered))
    assert "3 of 4 encodings sort their rows, 32 or 64 at a time" in text
    assert "the MAC array saves 33.3 % instead of 25.0 %" in text
    assert "changes by +1.0 %" in text
