"""A real sentence encoder, quantized by onnxruntime, on real sentences."""

from __future__ import annotations

from pathlib import Path

import minilm
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models import Reader, dynamic
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

import sparqle_tvm
from sparqle_tvm.frontend import from_onnx

pytestmark = pytest.mark.slow


def dynamic_model(folder: Path) -> onnx.ModelProto:
    """The encoder as onnxruntime quantizes it dynamically."""
    minilm.export(folder / "minilm.onnx")
    return onnx.load(dynamic(str(folder / "minilm.onnx"), folder))


def with_outputs(model: onnx.ModelProto, path: Path) -> tuple[str, list[list[str]]]:
    """The model with more outputs, as a file; for each quantized tensor the four that belong to it.

    They are the float tensor, its integers, scale and zero point.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    quantized = [n for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"]
    groups = [[n.input[0], *n.output] for n in quantized]
    kinds = [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    more = [pair for names in groups for pair in zip(names, kinds, strict=True)]
    exposed.graph.output.extend(helper.make_tensor_value_info(*each, None) for each in more)
    onnx.save(exposed, path)
    return str(path), groups


def session_of(model: str | bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_dynamic_uint8_is_exact_and_sparse(tmp_path: Path) -> None:
    path, groups = with_outputs(dynamic_model(tmp_path), tmp_path / "exposed.onnx")
    imported = from_onnx(path)
    split = sparqle_tvm.compile(imported.mod, collect_encodings=True)
    plain = sparqle_tvm.compile(imported.mod, split=False)
    assert split.report.rewritten["SplitPrecision"] == 6 * minilm.LAYERS
    assert split.report.skipped == []
    session = session_of(path)
    stored = columns = 0
    differences = []
    for given in minilm.encoded():
        found = [each.numpy() for each in split["main"](*given)]
        np.testing.assert_array_equal(found[0], plain["main"](*given)[0].numpy())
        inputs = dict(zip((each.name for each in imported.inputs), given, strict=True))
        expected = session.run(None, inputs)
        differences.append(float(np.abs(found[0] - expected[0]).max()))
        theirs = by_group(expected, groups)
        if same_up_to_a_border(by_group(found, groups), theirs):
            assert differences[-1] < 1e-5
        # Later layers amplify one step up to the noise of the quantization.
        off = np.linalg.norm(found[0] - expected[0])
        assert off < 0.25 * np.linalg.norm(expected[0])
        for record in split.encodings:
            stored += int(np.unpackbits(record.pbm).sum())
            columns += record.pbm.shape[0] * record.info.columns
    print(f"largest differences {differences}, MSB sparsity {1 - stored / columns:.3f}")
    assert np.median(differences) < 1e-5
    assert 1 - stored / columns > 0.6


def by_group(outputs: list[np.ndarray], groups: list[list[str]]) -> list[list[np.ndarray]]:
    """The outputs of each quantized tensor."""
    rest = iter(outputs[1:])
    return [[next(rest) for _ in names] for names in groups]


def same_up_to_a_border(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]]) -> bool:
    """Whether all integers are equal; if not, the first others must be next to a border.

    There a value in steps is half a step away from two integers but for the rounding of float32.
    """
    for (x, q, scale, zero), (their_x, their_q, their_scale, their_zero) in zip(
        ours, theirs, strict=True
    ):
        assert zero == their_zero
        np.testing.assert_allclose(scale, their_scale, rtol=2e-6)
        other = q != their_q
        if other.any():
            assert other.sum() <= 2
            assert np.abs(q.astype(int) - their_q)[other].max() == 1
            for values, step in ((x, scale), (their_x, their_scale)):
                steps = values[other].astype(np.float64) / float(step)
                np.testing.assert_allclose(np.abs(steps - np.floor(steps)), 0.5, atol=1e-4)
            return False
        np.testing.assert_allclose(x, their_x, rtol=0, atol=3e-6 * np.abs(their_x).max())
    return True


def test_every_product_of_equal_inputs_is_equal(tmp_path: Path) -> None:
    """Floats that onnxruntime quantizes are given to both: scales, zero points, integers, sums."""
    model = dynamic_model(tmp_path)
    path, groups = with_outputs(model, tmp_path / "exposed.onnx")
    (given,) = minilm.encoded()[5:6]
    session = session_of(path)
    known = session.run(None, dict(zip([i.name for i in session.get_inputs()], given, strict=True)))
    floats = {
        names[0]: values[0] for names, values in zip(groups, by_group(known, groups), strict=True)
    }
    nodes = [n for n in model.graph.node if n.op_type in ("DynamicQuantizeLinear", "MatMulInteger")]
    read = {name for node in nodes for name in node.input}
    # Of a quantization three outputs, of a product one.
    kinds = {3: (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8), 1: (TensorProto.INT32,)}
    made = [each for n in nodes for each in zip(n.output, kinds[len(n.output)], strict=True)]
    cut = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "seq", x.shape[-1]])
            for name, x in floats.items()
        ],
        [helper.make_tensor_value_info(*each, None) for each in made],
        [each for each in model.graph.initializer if each.name in read],
    )
    products = helper.make_model(cut, opset_imports=model.opset_import, ir_version=8)
    imported = from_onnx(products)
    compiled = sparqle_tvm.compile(imported.mod)
    assert compiled.report.rewritten["SplitPrecision"] == 6 * minilm.LAYERS
    found = compiled["main"](*(floats[each.name] for each in imported.inputs))
    expected = session_of(products.SerializeToString()).run(None, floats)
    assert len(found) == len(expected) == 4 * 3 * minilm.LAYERS + 6 * minilm.LAYERS
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs)


def test_operators_of_uint8_are_exact_and_sparse(tmp_path: Path) -> None:
    minilm.export(tmp_path / "minilm.onnx")
    path, given = str(tmp_path / "operators.onnx"), minilm.encoded()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    quantize_static(
        str(tmp_path / "minilm.onnx"),
        path,
        Reader(dict(zip(names, each, strict=True)) for each in given),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    split = sparqle_tvm.compile(from_onnx(path).mod, collect_encodings=True)
    assert split.report.rewritten["SplitPrecision"] == 6 * minilm.LAYERS
    session = session_of(path)
    relative, stored, columns = [], 0, 0
    for each in given:
        found = split["main"](*each).numpy()
        (expected,) = session.run(None, dict(zip(names, each, strict=True)))
        relative.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
        for record in split.encodings:
            stored += int(np.unpackbits(record.pbm).sum())
            columns += record.pbm.shape[0] * record.info.columns
    print(f"relative differences {relative}, MSB sparsity {1 - stored / columns:.3f}")
    # Where no LayerNorm or GELU puts a value on the other side of a border, integers are equal.
    assert np.median(relative) < 2e-6 and max(relative) < 0.3
    assert 1 - stored / columns > 0.75
