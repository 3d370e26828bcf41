"""CollectAttention: queries, keys and values come back beside the result."""

from __future__ import annotations

import numpy as np
import tvm
from pass_helpers import Runnable, apply
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.numerics import attention as defined
from sparqle_tvm.passes import CollectAttention


def two_attentions() -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x, y = (relax.Var(n, relax.TensorType((4, 2, 8), "float32")) for n in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            first = builder.emit(dialect.attention(x, y, y, causal=1, scale=0.5, label="a"))
            total = builder.emit(relax.op.add(first, y))
            last = dialect.attention(total, x, y, causal=0, scale=0.25, label="b")
            result = builder.emit_output(last)
        builder.emit_func_output(result)
    return builder.get()


def test_operands_come_back_in_order():
    before = two_attentions()
    after, report = apply(CollectAttention, before)
    assert report.rewritten["CollectAttention"] == 2
    collect = CollectAttention()
    collect(before)
    assert [(op.label, op.scale) for op in collect.collected["main"]] == [("a", 0.5), ("b", 0.25)]
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((4, 2, 8)).astype(np.float32) for _ in range(2))
    result, observed = Runnable(after)(x, y)
    total = defined.attention(x, y, y, scale=0.5) + y
    for found, wanted in zip(observed, (x, y, y, total, x, y), strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(result, defined.attention(total, x, y, scale=0.25, causal=False))


def test_nothing_to_collect():
    mod = tvm.IRModule({})
    assert CollectAttention()(mod).same_as(mod)
