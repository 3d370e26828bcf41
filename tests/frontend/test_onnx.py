"""ONNX models as onnxruntime quantizes them, against onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import FEATURES, dynamic, mlp, model, rows, run, static
from onnxruntime.quantization import QuantType

import sparqle_tvm
from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, UnsupportedModelError
from sparqle_tvm.frontend import from_onnx
from sparqle_tvm.frontend.onnx import label_of
from sparqle_tvm.frontend.onnx_graph import REWRITES, load_model, rewritten

RNG = np.random.default_rng(0)
FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def ours(source: Any, *inputs: np.ndarray, **options: Any) -> np.ndarray:
    """What the compiled model computes."""
    compiled = sparqle_tvm.compile(from_onnx(source, **options).mod)
    return compiled["main"](*inputs).numpy()


STATIC = {
    "int8": {},
    "int8 per channel": {"per_channel": True},
    "int8 operators": {"operators": True},
    "uint8": {"activations": QuantType.QUInt8},
    "uint8 operators": {"activations": QuantType.QUInt8, "operators": True},
    "int16": {"activations": QuantType.QInt16},
    "uint16": {"activations": QuantType.QUInt16},
}


@pytest.mark.parametrize("kind", STATIC)
def test_static_quantization_equals_onnxruntime(kind: str, tmp_path: Path) -> None:
    path = static(mlp(), tmp_path, **STATIC[kind])
    x = rows(7, 99)
    compiled = sparqle_tvm.compile(from_onnx(path).mod)
    assert compiled.report.rewritten["SplitPrecision"] == 2
    assert compiled.report.skipped == []
    np.testing.assert_array_equal(compiled["main"](x).numpy(), run(path, x))


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization_equals_onnxruntime(
    weights: Any, per_channel: bool, tmp_path: Path
) -> None:
    path = dynamic(mlp(), tmp_path, weight_type=weights, per_channel=per_channel)
    compiled = sparqle_tvm.compile(from_onnx(path).mod)
    assert compiled.report.rewritten["SplitPrecision"] == 2
    assert compiled.report.skipped == []
    for x in (rows(7, 99), rows(1, 98), np.zeros((2, FEATURES), np.float32)):
        np.testing.assert_array_equal(compiled["main"](x).numpy(), run(path, x))


@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("gemms", [0, 2])
def test_layers_with_bias_and_relu_are_drained(
    gemms: int, activations: Any, tmp_path: Path
) -> None:
    """A Gemm has an int32 bias in steps of its sums; a MatMul is quantized before an Add."""
    path = static(mlp(gemms=gemms), tmp_path, activations=activations)
    compiled = sparqle_tvm.compile(from_onnx(path).mod, engine="simulator")
    assert compiled.report.rewritten["DrainEncoded"] == 1
    assert compiled.report.skipped == []
    x = rows(7, 99)
    np.testing.assert_array_equal(compiled["main"](x).numpy(), run(path, x))


def test_products_of_a_quantized_model_are_split_and_bear_the_names_of_nodes(
    tmp_path: Path,
) -> None:
    compiled = sparqle_tvm.compile(from_onnx(static(mlp(), tmp_path)).mod, engine="simulator")
    assert compiled.report.rewritten["SplitPrecision"] == 2
    compiled["main"](rows(3, 5))
    assert [record.label for record in compiled.profile()] == ["up", "down"]


@pytest.mark.parametrize(
    ("name", "op", "label"),
    [
        ("/layer.0/q/MatMul_quant", "MatMulInteger", "layer_0_q"),
        ("/down/Gemm_MatMul_quant", "MatMulInteger", "down"),
        ("/layer.0/MatMul_1", "MatMul", "layer_0_MatMul_1"),
        ("MatMul", "MatMul", "MatMul"),
        ("", "MatMul", "MatMul"),
    ],
)
def test_labels(name: str, op: str, label: str) -> None:
    assert label_of(name, op) == label


def ints(low: int, high: int, *shape: int, dtype: str = "int8") -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


def number(value: float, dtype: str = "float32") -> np.ndarray:
    return np.array(value, dtype)


# Inputs "x" (5, 24) as given, constants in the order of the op's inputs, attributes.
Q = {"x_scale": number(0.05), "x_zero": number(3, "int8")}
OF_Y = {"y_scale": number(0.317), "y_zero": number(-7, "int8")}
W = {"w": ints(-127, 128, FEATURES, 6), "w_scale": number(0.02), "w_zero": number(0, "int8")}
COLUMNS = {**W, "w_scale": np.linspace(0.01, 0.05, 6, dtype=np.float32)}
COLUMNS["w_zero"] = np.zeros(6, np.int8)
GEMM = {**W, "w": ints(-127, 128, 6, FEATURES)}
OTHER = {"o": ints(-128, 128, FEATURES), "o_scale": number(0.1), "o_zero": number(9, "int8")}
UQ = {"x_scale": number(0.05), "x_zero": number(131, "uint8")}
CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, Any]]] = {
    "QLinearMatMul": ("QLinearMatMul", {**Q, **W, **OF_Y}, {}),
    "QLinearMatMul by column": ("QLinearMatMul", {**Q, **COLUMNS, **OF_Y}, {}),
    "QGemm": ("QGemm", {**Q, **W, "c": ints(-900, 900, 6, dtype="int32"), **OF_Y}, {}),
    "QGemm transposed": ("QGemm", {**Q, **GEMM, "": number(0), **OF_Y}, {"transB": 1}),
    "QGemm to float": ("QGemm", {**Q, **W, "c": ints(-9, 9, 6, dtype="int32")}, {"alpha": 0.5}),
    "QLinearAdd": ("QLinearAdd", {**Q, **OTHER, **OF_Y}, {}),
    "QLinearMul": ("QLinearMul", {**Q, **OTHER, **OF_Y}, {}),
    "QLinearSigmoid": ("QLinearSigmoid", {**Q, "s": number(0.004), "z": number(-128, "int8")}, {}),
    "QLinearLeakyRelu": ("QLinearLeakyRelu", {**Q, **OF_Y}, {"alpha": 0.1}),
    "QLinearSoftmax": (
        "QLinearSoftmax",
        {**UQ, "s": number(1 / 256), "z": number(0, "uint8")},
        {"axis": -1, "opset": 13},
    ),
}
CONTRIBUTED = {op for op, _, _ in CASES.values()} - {"QLinearMatMul"}


def quantized_op(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """One quantized op with an output in float32, and an input for it."""
    op, constants, attributes = CASES[name]
    unsigned = constants["x_zero"].dtype == np.uint8
    x = ints(0, 256, 5, FEATURES, dtype="uint8") if unsigned else ints(-128, 128, 5, FEATURES)
    domain = "com.microsoft" if op in CONTRIBUTED else ""
    made = helper.make_node(op, ["x", *constants], ["y"], f"/{op}", domain=domain, **attributes)
    nodes, outputs = [made], ["y"]
    if name != "QGemm to float":
        last = list(constants)[-2:]
        nodes.append(helper.make_node("DequantizeLinear", ["y", *last], ["f"], "/f"))
        outputs = ["f"]
    kept = {key: value for key, value in constants.items() if key}
    given = {"x": (UINT8 if unsigned else INT8, ["rows", FEATURES])}
    return model(nodes, given, outputs, kept), x


@pytest.mark.parametrize("name", CASES)
def test_quantized_ops_are_what_stands_for_them(name: str) -> None:
    """In the graph that is rewritten, run by onnxruntime; and as compiled."""
    source, x = quantized_op(name)
    plain = rewritten(load_model(source)[0])[0]
    assert not {node.op_type for node in plain.graph.node} & CONTRIBUTED
    expected = run(source, x)
    # A value on the border between two steps may fall to either side.
    step = float(CASES[name][1].get("y_scale", number(1 / 128)))
    for found in (run(plain, x), ours(source, x)):
        assert np.abs(found - expected).max() <= step * 1.001
        assert (found == expected).mean() > 0.95 or name == "QGemm to float"
        np.testing.assert_allclose(found, expected, atol=step * 1.001)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", ["MatMulIntegerToFloat", "DynamicQuantizeMatMul"])
def test_products_with_scales_of_run_time(op: str, bias: bool) -> None:
    w = {"w": ints(0, 256, FEATURES, 6, dtype="uint8")}
    scales = {"w_scale": np.linspace(0.01, 0.05, 6, dtype=np.float32)}
    zeros = {"w_zero": ints(100, 150, 6, dtype="uint8")}
    added = {"bias": RNG.normal(size=6).astype(np.float32)} if bias else {}
    inputs = {"x": (FLOAT, ["rows", FEATURES])}
    if op == "DynamicQuantizeMatMul":
        names = ["x", "w", "w_scale", "w_zero"]
        given: list[np.ndarray] = [rows(5, 3)]
    else:
        inputs = {"x": (UINT8, ["rows", FEATURES]), "x_scale": (FLOAT, []), "x_zero": (UINT8, [])}
        names = ["x", "w", "x_scale", "w_scale", "x_zero", "w_zero"]
        given = [ints(0, 256, 5, FEATURES, dtype="uint8"), number(0.07), number(140, "uint8")]
    node = helper.make_node(op, [*names, *added], ["y"], "/it", domain="com.microsoft")
    source = model([node], inputs, ["y"], {**w, **scales, **zeros, **added})
    expected = run(source, *given)
    np.testing.assert_allclose(ours(source, *given), expected, rtol=1e-5, atol=1e-4)


def test_a_quantized_convolution() -> None:
    w, w_scale = ints(-127, 128, 4, 2, 3, 3), np.linspace(0.01, 0.04, 4, dtype=np.float32)
    constants = {
        **Q,
        "w": w,
        "w_scale": w_scale,
        "w_zero": np.zeros(4, np.int8),
        **OF_Y,
        "b": ints(-900, 900, 4, dtype="int32"),
    }
    node = helper.make_node("QLinearConv", ["x", *constants], ["y"], "/c", pads=[1, 1, 1, 1])
    back = helper.make_node("DequantizeLinear", ["y", "y_scale", "y_zero"], ["f"], "/f")
    source = model([node, back], {"x": (INT8, [1, 2, 6, 6])}, ["f"], constants)
    x = ints(-128, 128, 1, 2, 6, 6)
    assert np.abs(ours(source, x) - run(source, x)).max() <= 0.3171


def test_a_quantized_concatenation() -> None:
    names = ["y_scale", "y_zero", "x", "x_scale", "x_zero", "o", "o_scale", "o_zero"]
    other = {**OTHER, "o": ints(-128, 128, 5, 3)}
    node = helper.make_node("QLinearConcat", names, ["y"], "/c", domain="com.microsoft", axis=1)
    back = helper.make_node("DequantizeLinear", ["y", "y_scale", "y_zero"], ["f"], "/f")
    constants = {**Q, **OF_Y, **other}
    source = model([node, back], {"x": (INT8, [5, FEATURES])}, ["f"], constants)
    x = ints(-128, 128, 5, FEATURES)
    np.testing.assert_array_equal(ours(source, x), run(source, x))


def test_every_rewrite_is_tested() -> None:
    assert set(REWRITES) == {op for op, _, _ in CASES.values()} | {
        *("QuantizeLinear", "DequantizeLinear", "Gemm", "QLinearConv", "QLinearConcat"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    }


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_opsets(opset: int, tmp_path: Path) -> None:
    path = static(mlp(opset=opset), tmp_path)
    x = rows(2, 7)
    np.testing.assert_array_equal(ours(path, x), run(path, x))


@pytest.mark.parametrize(
    "attributes", [{}, {"alpha": 0.5}, {"beta": 2.0}, {"transA": 1, "transB": 1, "alpha": -1.5}]
)
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(attributes: dict[str, Any], bias: bool) -> None:
    constants = {"w": RNG.normal(size=(6, 6)).astype(np.float32)}
    if bias:
        constants["c"] = RNG.normal(size=6).astype(np.float32)
    node = helper.make_node("Gemm", ["x", *constants], ["y"], "/g", **attributes)
    source = model([node], {"x": (FLOAT, [6, 6])}, ["y"], constants)
    x = RNG.normal(size=(6, 6)).astype(np.float32)
    np.testing.assert_allclose(ours(source, x), run(source, x), rtol=1e-5, atol=1e-6)


def test_weights_of_four_bits() -> None:
    """Their integers stay; the standard has them from opset 21 on."""
    w = helper.make_tensor("w", TensorProto.INT4, [FEATURES, 6], ints(-8, 8, FEATURES * 6).tolist())
    zero = helper.make_tensor("w_zero", TensorProto.INT4, [], [0])
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["a"], "/a"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["b"], "/b"),
        helper.make_node("MatMul", ["a", "b"], ["y"], "/four/MatMul"),
    ]
    given = {"x": (INT8, ["rows", FEATURES])}
    source = model(nodes, given, ["y"], {**Q, "w_scale": number(0.1)}, opset=21)
    source.graph.initializer.extend([w, zero])
    source.ir_version = 10
    x = ints(-128, 128, 5, FEATURES)
    compiled = sparqle_tvm.compile(from_onnx(source).mod, engine="simulator")
    found = compiled["main"](x).numpy()
    np.testing.assert_allclose(found, run(source, x), rtol=1e-5, atol=1e-4)
    assert compiled.programs[0].header.op.weight_bits == 4


def positions() -> onnx.ModelProto:
    """What exporters write: sizes read off a shape, a range up to one, a root of another."""
    one, zero = np.array([1], np.int64), np.array([0], np.int64)
    constants = {
        **{"0": np.array(0, np.int64), "1": np.array(1, np.int64), "[0]": zero, "[1]": one},
        "2": np.array(2, np.int64),
        "minus": np.array([-1], np.int64),
        "[4]": np.array([4], np.int64),
        "table": np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "0"], ["batch"]),
        helper.make_node("Gather", ["shape", "1"], ["seq"]),
        helper.make_node("Gather", ["shape", "2"], ["width"]),
        helper.make_node("Range", ["0", "seq", "1"], ["range"]),
        helper.make_node("Gather", ["table", "range"], ["places"]),
        helper.make_node("Add", ["x", "places"], ["placed"]),
        helper.make_node("Cast", ["width"], ["wide"], to=FLOAT),
        helper.make_node("Sqrt", ["wide"], ["root"]),
        helper.make_node("Div", ["placed", "root"], ["scaled"]),
        helper.make_node("Unsqueeze", ["batch", "[0]"], ["b"]),
        helper.make_node("Unsqueeze", ["seq", "[0]"], ["s"]),
        helper.make_node("Concat", ["b", "s", "[4]", "minus"], ["heads"], axis=0),
        helper.make_node("Reshape", ["scaled", "heads"], ["y"]),
    ]
    return model(nodes, {"x": (FLOAT, ["batch", "seq-len", 8])}, ["y"], constants)


def test_dynamic_axes() -> None:
    imported = from_onnx(positions())
    assert imported.inputs[0].shape == ("batch", "seq_len", "8")
    compiled = sparqle_tvm.compile(imported.mod)
    for shape in ((2, 5, 8), (1, 32, 8)):
        x = RNG.normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(compiled["main"](x).numpy(), run(positions(), x), rtol=1e-6)
    fixed = from_onnx(positions(), sizes={"seq-len": 5})
    assert fixed.inputs[0].shape == ("batch", "5", "8")


def test_axes_without_a_name_are_not_the_same() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    given = {"a": (FLOAT, [None, 4]), "b": (FLOAT, [4, None])}
    imported = from_onnx(model([node], given, ["y"], {}))
    assert [each.shape for each in imported.inputs] == [("a_0", "4"), ("4", "b_1")]
    assert imported.outputs == ("y",)


def test_the_model_that_is_given_stays_as_it_is() -> None:
    source = mlp()
    before = source.SerializeToString()
    from_onnx(source)
    assert source.SerializeToString() == before


def test_an_axis_that_no_input_has() -> None:
    with pytest.raises(
        InvalidArgumentError, match="axis 'row' is none of the model's; it has: batch"
    ):
        from_onnx(mlp(), sizes={"row": 3})


@pytest.mark.parametrize("opset", [12, 22])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"opset {opset} is not supported, 13 to 21"):
        from_onnx(mlp(opset=opset))


def test_unknown_ops_are_named() -> None:
    for domain, text in (("ai.onnx.ml", "unknown domains: ai.onnx.ml.Odd"), ("", "Odd")):
        node = helper.make_node("Odd", ["x"], ["y"], "/odd", domain=domain)
        source = model([node], {"x": (FLOAT, [3])}, ["y"], {})
        with pytest.raises(UnsupportedModelError, match=text):
            from_onnx(source)


def test_a_node_that_cannot_be_converted_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    constants = {"s": np.ones((3, 4), np.float32)}
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], "/blocks", block_size=2)
    source = model([node], {"x": (INT8, [6, 4])}, ["y"], constants, opset=21)
    with pytest.raises(
        UnsupportedModelError, match=r"node '/blocks' \(DequantizeLinear\).*blocked"
    ):
        from_onnx(source)
    assert capsys.readouterr().out == ""


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        from_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model at all, but text\n" * 9)
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises((ModelFileError, UnsupportedModelError), match=rf"{name}\.onnx"):
            from_onnx(tmp_path / f"{name}.onnx")


def test_tensors_in_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = rows(3, 1)
    np.testing.assert_allclose(ours(path, x), run(mlp(), x), rtol=1e-5, atol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        from_onnx(path)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda g: g.node[1].input.__setitem__(0, "nobody"), "reads 'nobody', which nothing"),
        (lambda g: g.node[1].output.__setitem__(0, "h"), "makes 'h' again"),
        (lambda g: g.initializer[0].dims.__setitem__(0, 999), "tensor 'up.weight'"),
        (lambda g: g.output[0].__setattr__("name", "z"), "nothing makes the output 'z'"),
        (lambda g: g.ClearField("output"), "it has no output"),
    ],
)
def test_damaged_graphs(damage: Any, text: str) -> None:
    source = mlp()
    damage(source.graph)
    with pytest.raises(ModelFileError, match=text):
        from_onnx(source)


def test_without_the_package(tmp_path: Path) -> None:
    """The default installation has no onnx: the message says what to install."""
    (tmp_path / "onnx.py").write_text("raise ImportError('none here', name='onnx')\n")
    code = (
        "from sparqle_tvm.frontend import from_onnx\n"
        "try:\n    from_onnx('x.onnx')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "MissingExtraError ONNX models need onnx" in done.stdout
    assert "sparqle-tvm[onnx]" in done.stdout
