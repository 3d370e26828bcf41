"""Types that the dialect infers, and every error it raises."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.errors import InvalidArgumentError

dialect.register()

N = tvm.tirx.Var("n", "int64")


def tensor(shape: Any, dtype: str, name: str = "x") -> relax.Var:
    return relax.Var(name, relax.TensorType(shape, dtype))


def infer(call: relax.Call) -> Any:
    return relax.BlockBuilder().normalize(call).ty


def dims(ty: relax.TensorType) -> list[Any]:
    """Its shape, as numbers or the text of symbolic expressions."""
    values = [int(d) if hasattr(d, "value") else str(d) for d in ty.shape.values]
    return [v.replace("T.int64(", "").replace(")", "") if isinstance(v, str) else v for v in values]


def described(call: relax.Call) -> list[tuple[list[Any], str]]:
    """Shape and dtype of each field of an encoding."""
    return [(dims(field), str(field.dtype)) for field in infer(call).fields]


def test_encode_of_a_matrix_with_odd_k() -> None:
    assert described(dialect.encode(tensor((3, 33), "int8"), k=4)) == [
        ([3, 17], "uint8"),
        ([3, 5], "uint8"),
        ([51], "uint8"),
        ([4], "int32"),
    ]


@pytest.mark.parametrize(
    ("k", "dtype", "lsb_bytes"), [(2, "int8", 9), (4, "int8", 17), (8, "int16", 33)]
)
def test_encode_in_each_digit_width(k: int, dtype: str, lsb_bytes: int) -> None:
    found = described(dialect.encode(tensor((2, 33), dtype), k=k))
    assert [shape for shape, _ in found] == [[2, lsb_bytes], [2, 5], [2 * lsb_bytes], [3]]


def test_encode_of_a_vector_is_one_row() -> None:
    found = described(dialect.encode(tensor((16,), "int8"), group_size=8))
    assert [shape for shape, _ in found] == [[8], [2], [8], [2], [2]]


def test_encode_of_no_rows() -> None:
    found = described(dialect.encode(tensor((0, 16), "int8")))
    assert [shape for shape, _ in found] == [[0, 8], [0, 2], [0], [1]]


def test_quantize_encode_with_batch_and_symbolic_rows() -> None:
    call = dialect.quantize_encode(tensor((2, N, 64), "float32"), group_size=32)
    assert described(call) == [
        ([2, "n", 32], "uint8"),
        ([2, "n", 8], "uint8"),
        (["n * 64"], "uint8"),
        (["n * 2 + 1"], "int32"),
        ([2, "n", 1], "float32"),
        ([2, "n", 2], "int32"),
    ]


def encoding(shape: Any = (3, 64), **attrs: Any) -> relax.Var:
    ty = infer(dialect.quantize_encode(tensor(shape, "float32"), **attrs))
    return relax.Var("enc", ty)


def zero_encoding(zeros: Any = (3, 1)) -> relax.Var:
    """An encoding of uint8 with zero points that come at run time."""
    call = dialect.encode(tensor((3, 64), "uint8"), tensor(zeros, "uint8"), window="signed")
    return relax.Var("enc", infer(call))


def test_zero_points_of_run_time_are_a_field() -> None:
    x = tensor((2, N, 64), "uint16")
    for shape in ((), (1,), (1, 1, 1), (2, N, 1)):
        found = described(dialect.encode(x, tensor(shape, "uint16"), k=8, group_size=32))
        wanted = [int(d) if isinstance(d, int) else "n" for d in shape]
        assert found[4:] == [(wanted, "uint16"), ([2, "n", 2], "int32")]
    dense = dialect.Op.of(integer_dense(zero_encoding(), act_signed=0))
    assert dims(dense.zero_points_type) == [3, 1]
    assert dims(infer(dense.call())) == [3, 5]
    assert dialect.Op.of(integer_dense()).zero_points_type is None


DENSE: dict[str, Any] = {"k": 4, "window": "signed", "in_features": 64, "weight_bits": 4}


def integer_dense(enc: Any = None, w: Any = None, bias: Any = None, **changes: Any) -> relax.Call:
    return dialect.split_dense(
        enc if enc is not None else encoding(),
        w if w is not None else tensor((5, 64), "int8"),
        bias if bias is not None else tensor((5,), "int32"),
        **(DENSE | changes),
    )


def scaled_dense(group_size: int = 0, **changes: Any) -> relax.Call:
    """A per-channel or grouped dense with minimum, with some operands or attributes replaced."""
    per_channel = {
        "w_scale": tensor((5,), "float32"),
        "offset": tensor((5,), "int32"),
        "w_min": None,
        "group_sums": None,
    }
    grouped = {
        "w_scale": tensor((5, 2), "float16"),
        "offset": tensor((5,), "float64"),
        "w_min": tensor((5, 2), "float16"),
        "group_sums": tensor((3, 2), "int32"),
    }
    operands = {
        "encoding": encoding(),
        "act_scale": tensor((3, 1), "float32"),
        "weight": tensor((5, 64), "int8"),
        **(grouped if group_size else per_channel),
    }
    return dialect.split_dense_scaled(**(operands | DENSE | {"group_size": group_size} | changes))


def test_types_of_the_dense_ops() -> None:
    dense = infer(integer_dense(encoding((2, N, 64))))
    assert str(dense.dtype) == "int32"
    assert dims(dense) == [2, "n", 5]
    for call in (scaled_dense(), scaled_dense(32), scaled_dense(32, w_min=None, group_sums=None)):
        ty = infer(call)
        assert (str(ty.dtype), dims(ty)) == ("float32", [3, 5])
    for one in (relax.const(1.0, "float32"), tensor((1,), "float32"), tensor((1, 1), "float32")):
        assert dims(infer(scaled_dense(act_scale=one))) == [3, 5]


BALANCE: dict[str, Any] = {"in_features": 64, "block_rows": 16, "lanes": 8, "min_rows": 32}


def test_an_order_has_a_number_for_every_row() -> None:
    for shape, rows in (((3, 8), 3), ((2, N, 3, 8), "n * 6"), ((8,), 1)):
        ty = infer(dialect.balance_rows(tensor(shape, "uint8"), **BALANCE))
        assert (str(ty.dtype), dims(ty)) == ("int32", [rows])
    for group in (0, 32):
        ordered = scaled_dense(group, row_order=tensor((3,), "int32"))
        assert dims(infer(ordered)) == [3, 5]
        view = dialect.SplitDenseScaled.of(ordered)
        assert (view.w_min is None, view.row_order is None) == (group == 0, False)
        assert view.row_order.same_as(ordered.args[-1])
    view = dialect.SplitDenseScaled.of(scaled_dense())
    assert (view.w_min, view.group_sums, view.row_order) == (None, None, None)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: dialect.balance_rows(tensor((3, 9), "uint8"), **BALANCE), "has 9 bytes a row"),
        (lambda: dialect.balance_rows(tensor((3, 8), "int8"), **BALANCE), "uint8 is needed"),
        (
            lambda: dialect.balance_rows(tensor((3, 8), "uint8"), **(BALANCE | {"lanes": 0})),
            "lanes=0 is not a positive number",
        ),
        (
            lambda: scaled_dense(row_order=tensor((4,), "int32")),
            r"row order has shape \[4\], \[3\]",
        ),
        (lambda: scaled_dense(row_order=tensor((3,), "int64")), "row order is int64"),
    ],
)
def test_orders_that_are_refused(make: Any, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        infer(make())


def encoded_dense(**changes: Any) -> relax.Call:
    """A dense of (3, 64) with outputs (3, 5), encoded."""
    scaled = scaled_dense()
    form = dialect.Op.of(scaled).attributes | {
        "out_low": -8,
        "out_high": 119,
        "out_window": "signed",
    }
    form |= {"out_scale": relax.const(1.0, "float32")} | changes
    return dialect.split_dense_encoded(*scaled.args[:5], **form)


def test_type_of_an_encoded_result() -> None:
    fields = infer(encoded_dense()).fields
    assert [str(f.dtype) for f in fields] == ["uint8", "uint8", "uint8", "int32"]
    assert [dims(f) for f in fields] == [[3, 3], [3, 1], [9], [4]]


ENCODE_ERRORS = {
    "is int16, int8 or uint8 is needed": lambda: dialect.encode(tensor((3, 8), "int16")),
    "is int8, int16 or uint16 is needed": lambda: dialect.encode(tensor((3, 8), "int8"), k=8),
    "zero_point=128 is not in -128..127": lambda: dialect.encode(
        tensor((3, 8), "int8"), zero_point=128
    ),
    "zero_point=-1 is not in 0..255": lambda: dialect.encode(
        tensor((3, 8), "uint8"), zero_point=-1
    ),
    "zero_point=4 and zero points of run time": lambda: dialect.encode(
        tensor((3, 8), "uint8"), tensor((), "uint8"), zero_point=4
    ),
    "the zero points is int8, uint8 is needed": lambda: dialect.encode(
        tensor((3, 8), "uint8"), tensor((), "int8")
    ),
    "the zero points has shape [3], [3, 1] is needed": lambda: dialect.encode(
        tensor((3, 8), "uint8"), tensor((3,), "uint8")
    ),
    "is int8, float32 is needed": lambda: dialect.quantize_encode(tensor((3, 8), "int8")),
    "has to be a tensor": lambda: dialect.encode(encoding()),
    "is a scalar": lambda: dialect.encode(tensor((), "int8")),
    "shape of the activation is not known": lambda: dialect.encode(
        relax.Var("x", relax.TensorType(dtype="int8", ndim=2))
    ),
    "K = 0": lambda: dialect.encode(tensor((3, 0), "int8")),
    "K = n is symbolic": lambda: dialect.encode(tensor((3, N), "int8")),
    "k=3 is not 2, 4 or 8": lambda: dialect.encode(tensor((3, 8), "int8"), k=3),
    'window="odd" is neither': lambda: dialect.encode(tensor((3, 8), "int8"), window="odd"),
    "qmax=128 is not in 1..127": lambda: dialect.quantize_encode(
        tensor((3, 8), "float32"), qmax=128
    ),
    "qmax=0 is not in 1..127": lambda: dialect.quantize_encode(tensor((3, 8), "float32"), qmax=0),
    "the tensor of factors has shape [7], [8] is needed": lambda: dialect.quantize_encode(
        tensor((3, 8), "float32"), tensor((7,), "float32")
    ),
    "the tensor of factors is float16": lambda: dialect.quantize_encode(
        tensor((3, 8), "float32"), tensor((8,), "float16")
    ),
    "the tensor of bands is int8, int16 is needed": lambda: dialect.quantize_encode(
        tensor((3, 8), "float32"), tensor((8,), "float32"), tensor((2, 8), "int8"), k=8
    ),
    "the tensor of bands has shape": lambda: dialect.quantize_encode(
        tensor((3, 8), "float32"), tensor((8,), "float32"), tensor((8,), "int8")
    ),
    "group_size=-1 is not 0 or": lambda: dialect.encode(tensor((3, 8), "int8"), group_size=-1),
    "K = 8 is not a multiple of group_size = 3": lambda: dialect.encode(
        tensor((3, 8), "int8"), group_size=3
    ),
}

DENSE_ERRORS = {
    "has to be an encoding's tuple": lambda: integer_dense(tensor((3, 32), "uint8")),
    "shape of the encoding is not known": lambda: integer_dense(
        relax.Var("enc", relax.TupleType([relax.TensorType(dtype="uint8", ndim=2)] * 4))
    ),
    "has 32 LSB bytes a row": lambda: integer_dense(in_features=32),
    "zero_point=300 is not in 0..255": lambda: integer_dense(act_signed=0, zero_point=300),
    "act_signed=2 is not 0 or 1": lambda: integer_dense(act_signed=2),
    "brings zero points of uint8, the op has act_signed=1": lambda: integer_dense(zero_encoding()),
    "the op has act_signed=0, zero_point=7": lambda: integer_dense(
        zero_encoding(), act_signed=0, zero_point=7
    ),
    "in_features=0 is not a positive K": lambda: integer_dense(in_features=0),
    "weight_bits=3 is not 2, 4 or 8": lambda: integer_dense(weight_bits=3),
    "the weight is uint8": lambda: integer_dense(w=tensor((5, 64), "uint8")),
    "the weight is [64, 5], [N, 64]": lambda: integer_dense(w=tensor((64, 5), "int8")),
    "N or K = n is symbolic": lambda: integer_dense(w=tensor((N, 64), "int8")),
    "the offset has shape [4], [5]": lambda: integer_dense(bias=tensor((4,), "int32")),
    "the offset is float32": lambda: integer_dense(bias=tensor((5,), "float32")),
    "the activation scale is float16": lambda: scaled_dense(act_scale=tensor((3, 1), "float16")),
    "the activation scale has shape [2, 1]": lambda: scaled_dense(
        act_scale=tensor((2, 1), "float32")
    ),
    "the weight scale is float16": lambda: scaled_dense(w_scale=tensor((5,), "float16")),
    "the weight scale has shape [5, 1]": lambda: scaled_dense(w_scale=tensor((5, 1), "float32")),
    "the offset is float64": lambda: scaled_dense(offset=tensor((5,), "float64")),
    "the weight scale is float64": lambda: scaled_dense(32, w_scale=tensor((5, 2), "float64")),
    "the weight minimum is float16": lambda: scaled_dense(
        32, w_scale=tensor((5, 2), "float32"), w_min=tensor((5, 2), "float16")
    ),
    "the offset is int32": lambda: scaled_dense(32, offset=tensor((5,), "int32")),
    "the weight minimum has shape [5, 1]": lambda: scaled_dense(
        32, w_min=tensor((5, 1), "float16")
    ),
    "the group sums is no tensor": lambda: scaled_dense(32, group_sums=encoding()),
    "the group sums has shape [3, 1]": lambda: scaled_dense(32, group_sums=tensor((3, 1), "int32")),
    "64 is not a multiple of group_size = 48": lambda: scaled_dense(48),
    "w_min and group_sums go together": lambda: scaled_dense(
        0, w_min=tensor((5, 2), "float16"), group_sums=tensor((3, 2), "int32")
    ),
}

ENCODED_ERRORS = {
    "the output scale is": lambda: encoded_dense(out_scale=tensor((1,), "float32")),
    "one float32 without dimensions": lambda: encoded_dense(out_scale=tensor((), "float16")),
    'out_window="odd" is neither': lambda: encoded_dense(out_window="odd"),
    "out_low=-129 is not in -128..127": lambda: encoded_dense(out_low=-129),
    "out_high=128 is not in -8..127": lambda: encoded_dense(out_high=128),
    "out_low=-8 is not in 0..255": lambda: encoded_dense(out_signed=0),
    "out_signed=2 is not 0 or 1": lambda: encoded_dense(out_signed=2),
    "out_zero=128 is not in -128..127": lambda: encoded_dense(out_zero=128),
    "the bias has shape [4], [5]": lambda: encoded_dense(bias=tensor((4,), "float32")),
    "the bias is int32": lambda: encoded_dense(bias=tensor((5,), "int32")),
    "mid_scale=-0.5 is no step": lambda: encoded_dense(mid_scale=-0.5),
    "mid_zero=3 is not in 0..0": lambda: encoded_dense(mid_zero=3),
    "mid_low=-65537 is not in": lambda: encoded_dense(mid_scale=0.5, mid_low=-65537),
    "mid_high=0 is not above 0": lambda: encoded_dense(mid_scale=0.5),
}


@pytest.mark.parametrize("message", [*ENCODE_ERRORS, *DENSE_ERRORS, *ENCODED_ERRORS])
def test_errors(message: str) -> None:
    call = (ENCODE_ERRORS | DENSE_ERRORS | ENCODED_ERRORS)[message]()
    with pytest.raises(InvalidArgumentError, match=re.escape(message)) as caught:
        infer(call)
    assert str(caught.value).startswith("sparqle.")


def test_bands_need_factors() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\(up\): bands need factors"):
        dialect.quantize_encode(tensor((3, 8), "float32"), None, tensor((2, 8), "int8"), label="up")


def test_an_error_names_the_tensor() -> None:
    call = dialect.encode(tensor((3, 0), "int8"), label="blk_0_up")
    with pytest.raises(InvalidArgumentError, match=r"^sparqle\.encode \(blk_0_up\): K = 0"):
        infer(call)


def heads(*shape: Any, dtype: str = "float32") -> relax.Var:
    return tensor(shape, dtype)


def attention(q: relax.Expr, k: relax.Expr, v: relax.Expr, *mask: relax.Expr, **named: Any) -> Any:
    return dialect.attention(q, k, v, *mask, **{"causal": 1, "scale": 0.5, "label": "a", **named})


def test_attention_has_the_tokens_and_heads_of_queries_and_the_channels_of_values() -> None:
    t = tvm.tirx.Var("t", "int64")
    call = attention(heads(t, 6, 16), heads(N, 2, 16), heads(N, 2, 20), heads(t, N, dtype="bool"))
    assert dims(infer(call)) == ["t", 6, 20]
    call = attention(heads(N, t, 6, 16), heads(N, t, 3, 16), heads(N, t, 3, 16))
    assert dims(infer(call)) == ["n", "t", 6, 16]


def test_stored_heads_have_their_scales_beside_them() -> None:
    stored = dialect.quantize_heads(heads(N, 2, 16), levels=31)
    assert dims(infer(stored)) == ["n", 2, 20]
    k, v = heads(N, 2, 20, dtype="int8"), heads(N, 2, 9, dtype="int8")
    assert dims(infer(attention(heads(1, 4, 16), k, v))) == [1, 4, 5]


@pytest.mark.parametrize(
    ("shapes", "named", "message"),
    [
        ([(4, 3, 8), (4, 2, 8), (4, 2, 8)], {}, "3 query heads are not a multiple of 2 key heads"),
        ([(4, 4, 8), (4, 2, 6), (4, 2, 8)], {}, "queries have 8 channels, keys 6"),
        ([(4, 4, 8), (4, 2, 8), (5, 2, 8)], {}, "tensor of values does not fit the tensor of keys"),
        ([(2, 4, 4, 8), (4, 2, 8), (4, 2, 8)], {}, "does not fit the tensor of queries"),
        ([(4, 8), (4, 8), (4, 8)], {}, "(tokens, heads, channels) is needed, or the same behind"),
        ([(5, 4, 8), (4, 2, 8), (4, 2, 8)], {}, "5 queries look at 4 keys; causal needs as many"),
        ([(4, 4, 8), (4, 2, 8), (4, 2, 8), (4, 3)], {}, "has shape [4, 3], [4, 4] is needed"),
        ([(4, 4, 8), (4, 2, 8), (4, 2, 8)], {"scale": 0.0}, "scale=0.0 is not positive and finite"),
        ([(4, 4, 8), (4, 2, 8), (4, 2, 8)], {"causal": 2}, "causal=2 is not 0 or 1"),
        ([(4, 4, 8), (4, 2, 8), (4, 2, 8)], {"key_levels": 128}, "levels=128 is not in 1..127"),
        ([(4, 4, N), (4, 2, N), (4, 2, N)], {}, "channels of q = n is symbolic"),
    ],
)
def test_attention_refuses(shapes: list[Any], named: dict[str, Any], message: str) -> None:
    operands = [heads(*s) for s in shapes[:3]] + [heads(*s, dtype="bool") for s in shapes[3:]]
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        infer(attention(*operands, **named))


@pytest.mark.parametrize(
    ("x", "levels", "message"),
    [
        (heads(3, 8), 127, "(.., T, H, D) is needed"),
        (heads(3, 2, 8, dtype="int8"), 127, "activation is int8, float32 is needed"),
        (heads(3, 2, 8), 0, "levels=0 is not in 1..127"),
    ],
)
def test_quantize_heads_refuses(x: relax.Var, levels: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        infer(dialect.quantize_heads(x, levels=levels))
