"""A real sentence encoder, quantized by onnxruntime, on real sentences."""

from __future__ import annotations

from pathlib import Path

import minilm
import numpy as np
import onnxruntime
import pytest
from onnx_models import Reader, dynamic
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

import sparqle_tvm
from sparqle_tvm.frontend import from_onnx

pytestmark = pytest.mark.slow


def test_dynamic_uint8_is_exact_and_sparse(tmp_path: Path) -> None:
    minilm.export(tmp_path / "minilm.onnx")
    path = dynamic(str(tmp_path / "minilm.onnx"), tmp_path)
    imported = from_onnx(path)
    split = sparqle_tvm.compile(imported.mod, collect_encodings=True)
    plain = sparqle_tvm.compile(imported.mod, split=False)
    assert split.report.rewritten["SplitPrecision"] == 6 * minilm.LAYERS
    assert split.report.skipped == []
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in imported.inputs]
    stored = columns = 0
    differences = []
    for given in minilm.encoded():
        found = split["main"](*given).numpy()
        np.testing.assert_array_equal(found, plain["main"](*given).numpy())
        (expected,) = session.run(None, dict(zip(names, given, strict=True)))
        differences.append(float(np.abs(found - expected).max()))
        # One value on the border of two steps may be rounded to either, because float sums have
        # another order: later layers amplify that up to the noise of the quantization.
        assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)
        for record in split.encodings:
            stored += int(np.unpackbits(record.pbm).sum())
            columns += record.pbm.shape[0] * record.info.columns
    print(f"largest differences {differences}, MSB sparsity {1 - stored / columns:.3f}")
    # Where no value is on a border, all integers are the same.
    assert np.median(differences) < 1e-5
    assert 1 - stored / columns > 0.6


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
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
