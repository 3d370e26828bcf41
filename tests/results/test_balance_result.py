"""What sorting rows brings, as plain data."""

from __future__ import annotations

import dataclasses
import json

from run_result_helper import phase, run_result
from test_tables import printed

from sparqle_tvm.results.balance import count_balance


def test_a_pass_beside_itself_with_sorted_rows() -> None:
    in_order = phase(24, 0).sparqle
    encodes = tuple(
        dataclasses.replace(encode, block_rows=block)
        for encode, block in zip(in_order.encodes, (0, 64, 32, 64), strict=True)
    )
    op = in_order.ops[0]
    faster = dataclasses.replace(op, msb_cycles=op.msb_cycles - 100)
    ordered = dataclasses.replace(in_order, encodes=encodes, ops=(faster, *in_order.ops[1:]))
    found = count_balance(ordered, in_order, "array")
    assert (found.sorted_encodings, found.encodings, found.block_rows) == (3, 4, (32, 64))
    assert found.mma_cycles == found.mma_cycles_in_order - 100
    assert found.layer_cycles == in_order.dense_layers.cycles
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_what_the_tables_say() -> None:
    assert "own order" not in printed(run_result())
    prefill = phase(24, 0)
    alike = count_balance(prefill.sparqle, prefill.sparqle, "array")
    assert "Rows stay in their own order: sorting them would not pay." in printed(
        run_result(balance=alike)
    )
    off = dataclasses.replace(alike, goal="none")
    assert "sorting them is switched off" in printed(run_result(balance=off))
    ordered = dataclasses.replace(
        alike,
        sorted_encodings=3,
        block_rows=(32, 64),
        mma_cycles_in_order=prefill.dense.mma_cycles * 3 // 4,
        mma_cycles=prefill.dense.mma_cycles * 2 // 3,
        layer_cycles=alike.layer_cycles_in_order * 101 // 100,
    )
    text = " ".join(printed(run_result(balance=ordered)).split())
    assert "3 of 4 encodings sort their rows, 32 or 64 at a time" in text
    assert "the MAC array saves 33.3% instead of 25.0%" in text
    assert "changes by +1.0%" in text
