"""The tables of docs/models.md: each form goes in, and each reason is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

import sparqle_tvm

RNG = np.random.default_rng(0)
M, K, N, GROUP = 6, 64, 48, 16
W = RNG.integers(-100, 101, (K, N)).astype(np.int8)
W_SCALE = RNG.uniform(0.01, 0.1, N).astype(np.float32)
W_ZERO = RNG.integers(-9, 10, N).astype(np.int8)
G_SCALE = RNG.uniform(0.01, 0.1, (N, K // GROUP, 1)).astype(np.float32)
G_ZERO = RNG.integers(-9, 10, G_SCALE.shape).astype(np.int8)

Values = dict[str, np.ndarray]
Form = Callable[[Any, dict[str, relax.Var]], relax.Expr]


def const(value: Any, dtype: str = "float32") -> relax.Expr:
    return relax.const(np.asarray(value, dtype))


def integers(dtype: str, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def build(cases: dict[str, tuple[Values, Form]]) -> tvm.IRModule:
    """A function for each case: together they compile in half of the time."""
    builder = relax.BlockBuilder()
    for name, (values, form) in cases.items():
        types = {n: relax.TensorType(v.shape, str(v.dtype)) for n, v in values.items()}
        given = {n: relax.Var(n, ty) for n, ty in types.items()}
        with builder.function(function_of(name), list(given.values())):
            with builder.dataflow():
                y = builder.emit_output(form(builder.emit, given))
            builder.emit_func_output(y)
    return builder.get()


def function_of(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def spelled(e: Any, q: Any, scale: Any, zero: Any = None) -> relax.Expr:
    wide = e(op.astype(q, "float32"))
    if zero is not None:
        wide = e(op.subtract(wide, zero))
    return e(op.multiply(wide, scale))


def dq(e: Any, q: Any, scale: Any, zero: Any, axis: int = -1, dtype: str = "float32") -> Any:
    return e(op.dequantize(q, scale, zero, axis, dtype))


def in_groups(e: Any, zero: Any = None) -> relax.Expr:
    """The weight (K, N) of groups of K, kept as (N, K)."""
    cut = e(op.reshape(const(np.ascontiguousarray(W.T), "int8"), (N, K // GROUP, GROUP)))
    wide = spelled(e, cut, const(G_SCALE), const(zero) if isinstance(zero, np.ndarray) else zero)
    return e(op.permute_dims(e(op.reshape(wide, (N, K)))))


def drained(e: Any, p: dict[str, relax.Var]) -> relax.Expr:
    scale, zero = const(0.02), const(0, "int8")
    bias = const(RNG.integers(-999, 999, N), "int32")
    h = e(op.matmul(dq(e, p["q"], scale, zero), dq(e, const(W, "int8"), scale, zero)))
    return reader(e, op.add(h, dq(e, bias, const(0.0004), const(0, "int32"))))


def drained_float(e: Any, p: dict[str, relax.Var], grid: bool = False) -> relax.Expr:
    scale, zero = const(0.02), const(0, "int8")
    h = e(op.matmul(dq(e, p["q"], scale, zero), dq(e, const(W, "int8"), scale, zero)))
    if grid:
        form = const(0.317), const(-9, "int8")
        h = dq(e, e(op.quantize(h, *form, -1, "int8")), *form)
    return reader(e, op.add(h, const(RNG.normal(0, 2, N))))


def reader(e: Any, h: relax.Expr) -> relax.Expr:
    """The layer that reads the first one's result, behind a ReLU."""
    scale, zero, h = const(0.02), const(0, "int8"), e(h)
    q = e(op.quantize(e(op.nn.relu(h)), const(0.5), zero, -1, "int8"))
    return op.matmul(dq(e, q, scale, zero), dq(e, const(W[:N, :8], "int8"), scale, zero))


def matmul_integer(e: Any, p: dict[str, relax.Var]) -> relax.Expr:
    wide = [e(op.astype(each, "int32")) for each in (p["q"], p["z"], const(W, "int8"))]
    return op.matmul(e(op.subtract(wide[0], wide[1])), wide[2], out_dtype="int32")


def wide_less(e: Any, q: Any, zero: Any) -> relax.Expr:
    return e(op.subtract(e(op.astype(q, "int32")), e(op.astype(zero, "int32"))))


def per_token(e: Any, p: dict[str, relax.Var]) -> relax.Expr:
    return spelled(e, p["q"], p["s"], e(op.astype(p["z"], "float32")))


SCALAR = np.array(0.07, np.float32)
ROWS = {
    "q": integers("int8", M, K),
    "s": RNG.uniform(0.01, 0.1, (M, 1)).astype(np.float32),
    "z": np.array([[-128], [-3], [0], [5], [127], [-125]], np.int8),
}
W8, OF_W, ZERO = const(W, "int8"), const(W_SCALE), const(0, "int8")
NONE = const(np.zeros(N), "int8")
FORMS: dict[str, tuple[Values, Form]] = {
    'integers, `R.matmul(q, w, out_dtype="int32")`': (
        {"q": integers("uint8", M, K), "w": W},
        lambda e, p: op.matmul(p["q"], p["w"], out_dtype="int32"),
    ),
    "MatMulInteger: `(int32(q) - z) @ int32(w)`": (
        {"q": integers("uint8", M, K), "z": np.array(117, np.uint8)},
        matmul_integer,
    ),
    "QDQ, constants": (
        {"q": integers("uint8", M, K)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), const(131, "uint8")),
            dq(e, W8, OF_W, const(W_ZERO, "int8"), 1),
        ),
    ),
    "QDQ, unsigned weights": (
        {"q": integers("uint8", M, K)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), const(131, "uint8")),
            dq(e, const(W.view(np.uint8), "uint8"), OF_W, const(W_ZERO.view(np.uint8), "uint8"), 1),
        ),
    ),
    "QDQ, parameters": (
        {"q": integers("int8", M, K), "s": SCALAR, "z": np.array(-9, np.int8), "w": W},
        lambda e, p: op.matmul(dq(e, p["q"], p["s"], p["z"]), dq(e, p["w"], p["s"], ZERO)),
    ),
    "QDQ of 16 bits": (
        {"q": integers("int16", M, K)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), const(0, "int16")), dq(e, W8, OF_W, NONE, 1)
        ),
    ),
    "QDQ in float16": (
        {"q": integers("int8", M, K)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.01, "float16"), ZERO, -1, "float16"),
            dq(e, W8, const(0.01, "float16"), ZERO, -1, "float16"),
        ),
    ),
    "spelled out: `(float(q) - z) * s`": (
        {"q": integers("int8", M, K)},
        lambda e, p: op.matmul(spelled(e, p["q"], const(0.1), const(4)), spelled(e, W8, OF_W)),
    ),
    "per token": (ROWS, lambda e, p: op.matmul(per_token(e, p), spelled(e, W8, OF_W))),
    "moved, times numbers": (
        {"q": integers("int8", 2, M, K)},
        lambda e, p: op.matmul(
            e(op.multiply(e(op.reshape(dq(e, p["q"], const(0.1), ZERO), (2 * M, K))), const(0.5))),
            e(op.permute_dims(dq(e, const(np.ascontiguousarray(W.T), "int8"), OF_W, NONE, 0))),
        ),
    ),
    "groups along K": (
        {"q": integers("int8", M, K)},
        lambda e, p: op.matmul(dq(e, p["q"], const(0.1), const(-7, "int8")), in_groups(e)),
    ),
    "groups along K, per token": (
        ROWS,
        lambda e, p: op.matmul(per_token(e, p), in_groups(e, G_ZERO)),
    ),
    "zero points of weights at run time": (
        {"q": ROWS["q"], "z": W_ZERO, "w": W},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), const(3, "int8")), dq(e, p["w"], OF_W, p["z"], 1)
        ),
    ),
    "unsigned weights, parameters": (
        {"q": ROWS["q"], "z": np.array(140, np.uint8), "w": integers("uint8", N, K)},
        lambda e, p: op.matmul(
            spelled(e, p["q"], const(0.1)),
            e(
                op.permute_dims(
                    spelled(e, p["w"], const(W_SCALE[:, None]), e(op.astype(p["z"], "float32")))
                )
            ),
        ),
    ),
    "MatMulInteger with both zero points": (
        {
            "q": integers("uint8", M, K),
            "z": np.array(117, np.uint8),
            "w": integers("uint8", K, N),
            "zw": integers("uint8", N),
        },
        lambda e, p: op.matmul(wide_less(e, p["q"], p["z"]), wide_less(e, p["w"], p["zw"])),
    ),
    "bias and ReLU, drained": ({"q": integers("int8", M, K)}, drained),
    "float bias and ReLU, drained": ({"q": integers("int8", M, K)}, drained_float),
    "quantized before the bias, drained": (
        {"q": integers("int8", M, K)},
        lambda e, p: drained_float(e, p, grid=True),
    ),
}
LEFT: dict[str, tuple[Values, Form]] = {
    "zero point of the weight of another type": (
        {"q": integers("int8", M, K), "z": np.array(3, np.int32)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), ZERO),
            spelled(e, W8, const(0.1), e(op.astype(p["z"], "float32"))),
        ),
    ),
    "groups with zero points of run time": (
        {"q": integers("int8", M, K), "z": G_ZERO},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), ZERO), in_groups(e, e(op.astype(p["z"], "float32")))
        ),
    ),
    "scale per column of K": (
        {"q": integers("int8", M, K)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(np.ones(K)), const(np.zeros(K), "int8"), 1),
            dq(e, W8, OF_W, NONE, 1),
        ),
    ),
    "both operands computed at run time": (
        {"q": integers("int8", M, K), "x": np.ones((K, N), np.float32)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), ZERO),
            dq(e, e(op.quantize(p["x"], const(0.1), ZERO, -1, "int8")), const(0.1), ZERO),
        ),
    ),
    "sums that can leave int32": (
        {"q": integers("int16", M, 999)},
        lambda e, p: op.matmul(
            dq(e, p["q"], const(0.1), const(0, "int16")),
            dq(e, const(np.full((999, 3), 99), "int8"), const(0.1), ZERO),
        ),
    ),
    "only weights quantized": (
        {"x": np.ones((M, K), np.float32)},
        lambda e, p: op.matmul(p["x"], dq(e, W8, OF_W, NONE, 1)),
    ),
}


def table(first: str) -> list[list[str]]:
    """The cells of the table of docs/models.md that has this heading."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    body = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body]


def test_the_tables_name_the_cases() -> None:
    assert [row[0] for row in table("form")] == list(FORMS)
    assert [row[0] for row in table("left alone")] == list(LEFT)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """All forms for both engines; and as TVM builds them, without the pipeline."""
    mod = build(FORMS)
    plain = tvm.relax.VirtualMachine(tvm.relax.build(mod, "llvm"), tvm.cpu())
    engines = ("host", "simulator")
    return {"plain": plain, **{e: sparqle_tvm.compile(mod, engine=e) for e in engines}}


def test_every_product_of_every_form_is_rewritten(compiled: dict[str, Any]) -> None:
    products = build(FORMS).script().count("R.matmul")
    assert products == len(FORMS) + 3  # the drained ones have two
    for engine in ("host", "simulator"):
        report = compiled[engine].report
        split = report.rewritten["SplitPrecision"] + report.rewritten["SplitGroupedDense"]
        assert split == products
        assert not [entry for entry in report.skipped if "matmul" in entry.op]
    # The presets have digits of 4 bits: what has digits of 8 runs on the host.
    assert report.rewritten["OffloadDense"] == products - 1
    assert report.rewritten["DrainEncoded"] == 3


@pytest.mark.parametrize("name", FORMS)
def test_a_form_goes_in(compiled: dict[str, Any], name: str) -> None:
    given, function = list(FORMS[name][0].values()), function_of(name)
    found = {e: compiled[e][function](*given).numpy() for e in ("host", "simulator")}
    launched = [record.label for record in compiled["simulator"].profile()]
    assert bool(launched) == (name != "QDQ of 16 bits")
    np.testing.assert_array_equal(found["host"], found["simulator"])
    expected = compiled["plain"][function](*map(tvm.runtime.tensor, given)).numpy()
    if expected.dtype == np.int32:
        np.testing.assert_array_equal(found["host"], expected)
        return
    # The float product rounds every sum, of float16 to 11 bits.
    near = 5e-3 if expected.dtype == np.float16 else 4e-6
    np.testing.assert_allclose(found["host"], expected, rtol=0, atol=near * np.abs(expected).max())


@pytest.fixture(scope="module")
def left() -> Any:
    return sparqle_tvm.compile(build(LEFT)).report


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_says_why(left: Any, name: str) -> None:
    assert not left.rewritten
    (reason,) = [row[1] for row in table("left alone") if row[0] == name]
    entries = [entry for entry in left.skipped if entry.function == function_of(name)]
    assert len(entries) == 1 and reason in entries[0].reason
