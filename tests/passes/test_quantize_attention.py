"""QuantizeAttention: the forms it knows, exact against the definition, and what it leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from pass_helpers import Runnable, apply, assert_changed, assert_equal_bits, assert_unchanged
from tvm import relax, tirx
from tvm.relax import op as R
from tvm.script import ir as I
from tvm.script import relax as RX

from sparqle_tvm.numerics import attention as defined
from sparqle_tvm.passes import FLOAT_ATTENTION, QuantizeAttention

T, N = tirx.Var("t", "int64"), tirx.Var("n", "int64")
HIDDEN = float(np.finfo(np.float32).min)
SCALE = 0.25


def module(shapes, emit):
    """A module whose ``main`` takes tensors of these shapes and returns ``emit(*vars)``."""
    builder = relax.BlockBuilder()
    params = [
        relax.Var(f"x{i}", relax.TensorType(shape, dtype))
        for i, (shape, dtype) in enumerate(shapes)
    ]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(emit(builder.emit, *params))
        builder.emit_func_output(result)
    return builder.get()


def floats(*shapes):
    return [(list(shape), "float32") for shape in shapes]


def attention_calls(mod):
    found = []
    relax.analysis.post_order_visit(
        mod["main"], lambda e: found.append(e) if "sparqle.attention" in _name(e) else None
    )
    return found


def _name(expr):
    return str(expr.op.name) if isinstance(expr, relax.Call) and hasattr(expr.op, "name") else ""


def positions_mask(emit, count, total, rank):
    """A causal mask of compared positions, (1, .., T, N)."""
    keys = emit(R.arange(total, dtype="int64"))
    queries = emit(R.strided_slice(keys, [0], [total - count], [total], assume_inbound=True))
    ones = [1] * (rank - 2)
    return emit(
        R.less_equal(R.reshape(keys, (*ones, 1, total)), R.reshape(queries, (*ones, count, 1)))
    )


def grouped_rows(emit, q, k, v):
    """Ours: the heads of a group as rows, K and V not repeated."""
    mask = positions_mask(emit, T, N, 3)
    scaled = emit(R.multiply(q, relax.const(SCALE, "float32")))
    queries = emit(R.reshape(R.permute_dims(scaled, [1, 0, 2]), (2, 3 * T, 16)))
    scores = emit(R.reshape(R.matmul(queries, R.permute_dims(k, [1, 2, 0])), (6, T, N)))
    probs = R.nn.softmax(R.where(mask, scores, relax.const(HIDDEN, "float32")), axis=-1)
    mixed = emit(R.matmul(R.reshape(probs, (2, 3 * T, N)), R.permute_dims(v, [1, 0, 2])))
    return R.permute_dims(R.reshape(mixed, (6, T, 16)), [1, 0, 2])


def repeated(emit, q, k, v):
    """Others': four dimensions, keys and values repeated, scores divided."""
    mask = positions_mask(emit, T, N, 4)
    k, v = (emit(R.permute_dims(R.repeat(x, 3, axis=2), [0, 2, 1, 3])) for x in (k, v))
    scores = emit(R.matmul(R.permute_dims(q, [0, 2, 1, 3]), R.permute_dims(k, [0, 1, 3, 2])))
    scores = emit(R.divide(scores, relax.const(1 / SCALE, "float32")))
    zero, low = relax.const(0.0, "float32"), relax.const(-1e9, "float32")
    bias = emit(R.where(mask, zero, low))
    probs = emit(R.nn.softmax(R.add(scores, bias), axis=-1))
    return R.permute_dims(R.matmul(probs, v), [0, 2, 1, 3])


def broadcast(emit, q, k, v):
    """Heads first from the start, keys and values repeated by a broadcast."""
    mask = positions_mask(emit, T, N, 4)

    def widened(x):
        wide = emit(R.broadcast_to(R.expand_dims(x, 2), (1, 2, 3, N, 16)))
        return emit(R.reshape(wide, (1, 6, N, 16)))

    scores = emit(R.matmul(q, R.permute_dims(widened(k), [0, 1, 3, 2])))
    scores = emit(R.multiply(scores, relax.const(SCALE, "float32")))
    probs = emit(R.nn.softmax(R.where(mask, scores, relax.const(HIDDEN, "float32")), axis=3))
    return R.matmul(probs, widened(v))


def fused(emit, q, k, v):
    k, v = (emit(R.repeat(x, 3, axis=2)) for x in (k, v))
    scale = tirx.FloatImm("float32", SCALE)
    return R.nn.attention(q, k, v, scale=scale, causal_mask="BottomRight")


FIRST = floats((T, 6, 16), (N, 2, 16), (N, 2, 16))
BATCH = floats((1, T, 6, 16), (1, N, 2, 16), (1, N, 2, 16))
HEADS_FIRST = floats((1, 6, T, 16), (1, 2, N, 16), (1, 2, N, 16))
FORMS = {
    "grouped_rows": (grouped_rows, FIRST, lambda x: x, lambda y: y),
    "repeated": (repeated, BATCH, lambda x: x[None], lambda y: y[0]),
    "broadcast": (
        broadcast,
        HEADS_FIRST,
        lambda x: x.transpose(1, 0, 2)[None],
        lambda y: y[0].transpose(1, 0, 2),
    ),
    "fused": (fused, BATCH, lambda x: x[None], lambda y: y[0]),
}


def random_operands(seed, tokens, keys):
    rng = np.random.default_rng(seed)
    shapes = ((tokens, 6, 16), (keys, 2, 16), (keys, 2, 16))
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_definition_bit_for_bit(name):
    emit, shapes, given, taken = FORMS[name]
    after, report = apply(QuantizeAttention, module(shapes, emit))
    assert report.rewritten["QuantizeAttention"] == 1 and not report.skipped
    (call,) = attention_calls(after)
    # Causal by its attribute: no mask, and keys and values are not repeated.
    assert len(call.args) == 3 and call.attrs["causal"] == 1
    assert int(call.args[1].ty.shape.values[-2]) == 2
    run = Runnable(after)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        tokens = int(rng.integers(1, 12))
        operands = random_operands(seed, tokens, tokens + int(rng.integers(0, 20)))
        found = taken(run(*map(np.ascontiguousarray, map(given, operands))))
        assert_equal_bits(found, defined.attention(*operands, scale=SCALE))


def test_ours_becomes_one_op():
    before = module(FIRST, grouped_rows)

    @I.ir_module
    class Expected:
        @RX.function
        def main(
            q: RX.Tensor(("t", 6, 16), "float32"),
            k: RX.Tensor(("n", 2, 16), "float32"),
            v: RX.Tensor(("n", 2, 16), "float32"),
        ):
            with RX.dataflow():
                y = RX.sparqle.attention(q, k, v, causal=1, scale=0.25, label="lv3")
                RX.output(y)
            return y

    after, _ = apply(QuantizeAttention, before)
    (call,), (expected,) = attention_calls(after), attention_calls(Expected)
    assert call.attrs["scale"] == expected.attrs["scale"] == 0.25
    assert len(after["main"].body.blocks[0].bindings) == 1


def masked(emit, q, k, v, mask):
    scores = emit(R.matmul(R.permute_dims(q, [1, 0, 2]), R.permute_dims(k, [1, 2, 0])))
    hidden = emit(R.where(R.expand_dims(mask, 0), scores, relax.const(-np.inf, "float32")))
    probs = emit(R.nn.softmax(hidden, axis=-1))
    return R.permute_dims(R.matmul(probs, R.permute_dims(v, [1, 0, 2])), [1, 0, 2])


@pytest.mark.parametrize("shape", [(5, 9), (1, 9)])
def test_another_mask_becomes_an_operand(shape):
    shapes = [*floats((5, 2, 8), (9, 2, 8), (9, 2, 8)), (list(shape), "bool")]
    after, _ = apply(QuantizeAttention, module(shapes, masked))
    (call,) = attention_calls(after)
    assert len(call.args) == 4 and call.attrs["causal"] == 0 and call.attrs["scale"] == 1.0
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 2, 8)).astype(np.float32) for n in (5, 9, 9))
    mask = rng.random(shape) < 0.5
    expected = defined.attention(
        q, k, v, scale=1.0, causal=False, mask=np.broadcast_to(mask, (5, 9)).copy()
    )
    assert_equal_bits(Runnable(after)(q, k, v, mask), expected)


@pytest.mark.parametrize("triangle", [True, False])
def test_constant_masks(triangle):
    mask = np.tri(4, 6, 2, dtype=bool)
    if not triangle:
        mask[0, 5] = True
    bias = relax.const(np.where(mask, 0, -np.inf).astype(np.float32)[None, None])

    def emit(emit, q, k, v):
        return R.nn.attention(q, k, v, bias)

    shapes = floats((1, 4, 2, 8), (1, 6, 2, 8), (1, 6, 2, 8))
    after, _ = apply(QuantizeAttention, module(shapes, emit))
    (call,) = attention_calls(after)
    assert len(call.args) == (3 if triangle else 4) and call.attrs["causal"] == int(triangle)
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, 2, 8)).astype(np.float32) for n in (4, 6, 6))
    expected = defined.attention(q, k, v, scale=1 / math.sqrt(8), causal=False, mask=mask)
    assert_equal_bits(Runnable(after)(q[None], k[None], v[None])[0], expected)


def same_heads(*others):
    return [*floats((1, T, 2, 8), (1, N, 2, 8), (1, N, 2, 8)), *others]


def with_scores(change, axis=-1):
    """Attention whose scores are changed in some way."""

    def emit(emit, q, k, v, *others):
        q, k, v = (emit(R.permute_dims(x, [0, 2, 1, 3])) for x in (q, k, v))
        scores = emit(R.matmul(q, R.permute_dims(k, [0, 1, 3, 2])))
        return R.matmul(R.nn.softmax(emit(change(scores, *others)), axis=axis), v)

    return emit


@pytest.mark.parametrize(
    "shapes, emit, reason",
    [
        (
            same_heads(([1, 2, T, N], "float32")),
            with_scores(R.add),
            "adds a tensor to its scores that is not known to be a mask",
        ),
        (
            same_heads(([1, 2, T, N], "bool")),
            with_scores(lambda s, m: R.where(m, s, relax.const(HIDDEN, "float32"))),
            "its mask differs by head",
        ),
        (
            same_heads(([1, 1, T, N], "bool")),
            with_scores(lambda s, m: R.where(m, s, relax.const(0.0, "float32"))),
            "what its mask hides is not made very small",
        ),
        (
            same_heads(([1], "float32")),
            with_scores(R.multiply),
            "its scores are scaled by a tensor",
        ),
        (
            floats((1, N, 2, 8), (1, N, 2, 8), (1, N, 2, 8)),
            with_scores(lambda s: s, axis=2),
            "its softmax is not over the last dimension",
        ),
        (
            same_heads(),
            lambda emit, q, k, v: R.nn.attention(q, k, v, causal_mask="TopLeft"),
            "its mask is TopLeft, and there are more keys than queries",
        ),
        (
            same_heads(),
            lambda emit, q, k, v: R.nn.attention(q, k, v, causal_mask="BottomRight", window_size=4),
            "it has a sliding window",
        ),
        (
            [(shape, "float16") for shape, _ in same_heads()],
            lambda emit, q, k, v: R.nn.attention(q, k, v),
            "it computes in float16, float32 is needed",
        ),
        (
            same_heads(),
            with_scores(lambda s: R.multiply(s, relax.const(-1.0, "float32"))),
            "scale=-1.0 is not positive",
        ),
    ],
)
def test_says_what_it_leaves_alone(shapes, emit, reason):
    (found,) = assert_unchanged(QuantizeAttention, module(shapes, emit))
    assert reason in found


def test_nothing_like_attention():
    def emit(emit, x, w):
        return R.matmul(emit(R.nn.relu(x)), w)

    assert assert_unchanged(QuantizeAttention, module(floats((T, 8), (8, 8)), emit)) == []

    def mixture(emit, x, w):
        return R.matmul(emit(R.nn.softmax(x)), w)

    assert assert_unchanged(QuantizeAttention, module(floats((1, T, 8), (8, 8)), mixture)) == []


def test_a_function_can_keep_its_own():
    before = module(FIRST, grouped_rows)
    kept = tvm.IRModule({"main": before["main"].with_attr(FLOAT_ATTENTION, True)})
    assert assert_unchanged(QuantizeAttention, kept) == []
    assert_changed(QuantizeAttention, before, apply(QuantizeAttention, before)[0])
