"""`sparqle_tvm.analyze` on small modules: counts beside sums by hand, inputs, what is said."""

import json
import zipfile

import numpy as np
import pytest
import tvm
from onnx_models import FEATURES, dynamic, mlp, rows
from tvm import relax, tirx

import sparqle_tvm
from sparqle_tvm.cli import main
from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, ResultFileError
from sparqle_tvm.frontend import from_onnx
from sparqle_tvm.numerics import encode
from sparqle_tvm.report.build import build_report
from sparqle_tvm.report.writers import to_markdown
from sparqle_tvm.results.analysis import Analysis, load_result
from sparqle_tvm.results.passes import block_of, layer_type
from sparqle_tvm.studies.call_inputs import parse_shapes, read_arrays
from sparqle_tvm.studies.rest import count_rest
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.vector import SOFTMAX_OPS

EDGE = PRESETS["sparqle/edge"]
K, N = 64, 48


def two_products(*, outputs: int = 1) -> tvm.IRModule:
    """Integers times constants, twice, of (n, 64) int8 with a dynamic axis and a second input."""
    rng, n = np.random.default_rng(0), tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, K), "int8"))
    y = relax.Var("y", relax.TensorType((n, K), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, y]):
        with builder.dataflow():
            made = []
            for name, given in (("h_0_up", x), ("h_1_up", y)):
                w = relax.const(rng.integers(-8, 8, (K, N)).astype(np.int8))
                made.append(builder.emit(relax.op.matmul(given, w, out_dtype="int32"), name))
            found = relax.Tuple(made) if outputs > 1 else relax.op.add(*made)
            result = builder.emit_output(found)
        builder.emit_func_output(result)
    return builder.finalize()


def operands(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    spread = (3, 40)
    return [np.clip(rng.normal(0, s, (count, K)), -128, 127).astype(np.int8) for s in spread]


@pytest.fixture(scope="module")
def found() -> Analysis:
    return sparqle_tvm.analyze(two_products(outputs=2), operands(20))


def test_sparsity_is_that_of_the_values_and_costs_are_of_programs_that_ran(found):
    assert found.exact and found.against == "module" and found.difference == 0.0
    stored = [np.unpackbits(encode(q).pbm).sum() for q in operands(20)]
    expected = [1 - bits / (20 * K) for bits in stored]
    assert [layer.msb_sparsity for layer in found.call.layers] == pytest.approx(expected)
    assert found.call.msb_sparsity == pytest.approx(np.mean(expected))
    assert [layer.label for layer in found.call.layers] == ["h_0_up", "h_1_up"]
    assert [(layer.m, layer.n, layer.k) for layer in found.call.layers] == [(20, N, K)] * 2
    # One LSB pass of 2 x 3 tiles of 16 x 16, 4 steps of 16 lanes each: the baseline takes two.
    dense, split = (found.call.schemes[s] for s in ("dense", "sparqle"))
    assert dense.mma_cycles == 2 * 2 * (2 * 3 * 4) and split.mma_cycles < dense.mma_cycles
    # By formula: one pass with the 10 lanes that the area leaves (7 steps), one of 4-bit values.
    native, floor = (found.call.schemes[s].mma_cycles for s in ("native", "a4"))
    assert native == 2 * (2 * 3 * 7) and floor == 2 * (2 * 3 * 4)
    for layer, launch in zip(found.call.layers, found.launches, strict=True):
        assert (launch.label, launch.rows) == (layer.label, 20)
    assert found.left == () and found.why_nothing == "" and found.seed is None
    assert repr(found).startswith("<Analysis of main: exact, 2 dense layers, MSB sparsity ")
    assert found.saved("sparqle") == found.call.saved("sparqle") and len(repr(found)) < 120


def test_a_result_survives_json_and_reports_name_every_layer(found, tmp_path):
    path = tmp_path / "out.json"
    path.write_text(json.dumps(found.to_json()))
    again = load_result(path)
    assert isinstance(again, Analysis) and again.call == found.call and again.inputs == found.inputs
    text = to_markdown(build_report(again))
    assert all(word in text for word in ("h_0_up", "h_1_up", "bit for bit", "| native |"))
    path.write_text(json.dumps({**found.to_json(), "call": None}))
    with pytest.raises(ResultFileError, match="has to say why"):
        load_result(path)


def test_formulas_agree_with_programs_on_what_does_not_depend_on_time(found):
    mod, given = two_products(), operands(20)
    other = sparqle_tvm.analyze(
        mod, {"y": given[1], "x": given[0]}, engine="analytical", balance="none"
    )
    assert other.exact and other.launches == ()
    for a, b in zip(other.call.layers, found.call.layers, strict=True):
        assert (a.msb_sparsity, a.macs) == (b.msb_sparsity, b.macs)
    mma = [one.call.schemes["dense"].mma_cycles for one in (other, found)]
    assert mma[0] == mma[1]


def test_missing_inputs_are_random_and_said_to_be(caplog):
    mod, (x, _) = two_products(), operands(5)
    some = sparqle_tvm.analyze(mod, [x], seed=3)
    assert [(i.source, i.shape) for i in some.inputs] == [("given", (5, K)), ("random", (5, K))]
    assert some.seed == 3 and some.exact and repr(some).endswith("random inputs: y>")
    assert caplog.messages == ["random values for y: no measurement of the model"]
    assert "no measurement" in to_markdown(build_report(some))


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "give its values, or a shape"),
        ({"z": np.zeros((1, K), np.int8)}, {}, "no parameter of this name, only x, y"),
        ([np.zeros((2, K + 1), np.int8)], {}, "'x' is 2 x 65, the function takes 2 x 64"),
        (3, {}, "inputs are a sequence"),
        ([np.zeros((2, K), np.float32)], {}, "is float32, the function takes int8"),
        ([np.full((2, K), 300)], {}, "do not fit int8"),
        ([np.zeros((2, K), np.int8), np.zeros((3, K), np.int8)], {}, "'y' is 3 x 64"),
        ([np.zeros((1, K), np.int8)] * 3, {}, "3 inputs for 2 parameters"),
        ([], {"function": "other"}, "no function 'other'; it has main"),
        ([], {"params": {"w": np.zeros(3)}}, "no parameter 'w'"),
        ([], {"shapes": {"x": (1 << 23, K)}}, "too large for a random input"),
        ([], {"engine": "abacus"}, "engine 'abacus' is unknown"),
        ([], {"dump": "here"}, "'dump' is of compile"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sparqle_tvm.analyze(two_products(), inputs, **options)


def test_a_path_is_no_module():
    with pytest.raises(InvalidArgumentError, match=r"not str: sparqle_tvm\.frontend makes one"):
        sparqle_tvm.analyze("model.onnx")


def test_weights_that_are_parameters_are_bound():
    mod = two_products()
    (_, y) = operands(4)
    found = sparqle_tvm.analyze(mod, {"x": operands(4)[0]}, params={"y": y})
    assert [each.name for each in found.inputs] == ["x"] and found.exact


def test_nothing_to_rewrite_has_a_reason():
    x = relax.Var("x", relax.TensorType((4, K), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            w = relax.const(np.ones((K, 8), np.float32))
            y = builder.emit_output(builder.emit(relax.op.matmul(x, w)))
        builder.emit_func_output(y)
    mod = builder.finalize()
    with pytest.raises(InvalidArgumentError, match="input 'x' holds NaN"):
        sparqle_tvm.analyze(mod, [np.full((4, K), np.nan, np.float32)])
    found = sparqle_tvm.analyze(mod)
    assert found.call is None
    assert found.why_nothing == "multiplies float32 values: not quantized"
    assert [(e.function, e.op) for e in found.left] == [("main", "matmul"), ("", "module")]
    assert f"nothing rewritten ({found.why_nothing})" in repr(found)
    with pytest.raises(InvalidArgumentError, match="multiplies float32"):
        found.saved("sparqle")
    assert "Nothing was rewritten" in to_markdown(build_report(found))


def test_the_rest_is_counted_from_shapes():
    """A sum that is read after a product is written and read again; scores stay on chip."""
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, K), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            scores = builder.emit(relax.op.matmul(x, relax.op.permute_dims(x)))
            probabilities = builder.emit(relax.op.nn.softmax(scores))
            y = builder.emit_output(relax.op.matmul(probabilities, x))
        builder.emit_func_output(y)
    func = builder.finalize()["main"]
    rest = count_rest(func, {func.params[0].ty.shape[0]: 10}, EDGE)
    matmul, softmax = rest.costs
    assert (matmul.label, softmax.label) == ("matmul", "nn softmax")
    assert matmul.macs == 2 * 10 * 10 * K and softmax.operations == SOFTMAX_OPS * 10 * 10
    # x once, y once; nothing between.
    size = 10 * K * EDGE.float_bytes
    assert (matmul.read_bytes, matmul.write_bytes) == (size, size)
    assert softmax.dram_bytes == 0 and rest.uncounted == ()
    assert count_rest(func, {}, EDGE).uncounted == ("matmul (2)", "nn.softmax (1)")


def test_names_of_layers_hold_their_block():
    assert (layer_type("blk_3_attn_q"), block_of("blk_3_attn_q")) == ("attn_q", 3)
    assert (layer_type("layer_0_up"), block_of("layer_0_up")) == ("layer_up", 0)
    assert (layer_type("output"), block_of("output")) == ("output", None)
    assert (layer_type("fc1"), block_of("fc1")) == ("fc1", None)


def test_sparqle_run_takes_onnx(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(dynamic(mlp(gemms=0), tmp_path))
    np.savez("in.npz", x=rows(6, 0))
    assert main(["run", "--model", model, "--inputs", "in.npz", "--json", "out.json"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    expected = sparqle_tvm.analyze(from_onnx(model), {"x": rows(6, 0)})
    again = load_result("out.json")
    assert again.call == expected.call
    # What a model of this kind has not, and inputs that it cannot have.
    for more, message in (
        (["--text", "a.txt"], "runs on arrays"),
        (["--inputs", "none.npz"], "none.npz cannot be read"),
        (["--shape", "x=4"], "the function takes"),
        (["--shape", "x:4"], "is not written as name=1x128"),
        ([], "give its values, or a shape"),
    ):
        assert main(["run", "--model", model, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["run", "--model", "none.pt2"]) == 2
    assert "none.pt2 cannot be read" in capsys.readouterr().err
    assert main(["run", "--model", "x.gguf", "--seed", "1"]) == 2
    assert "runs on a text" in capsys.readouterr().err


def test_files_of_arrays_are_read_or_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=rows(2, 0), ids=np.arange(3))
    found = read_arrays(path)
    assert sorted(found) == ["ids", "x"] and np.array_equal(found["x"], rows(2, 0))
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(InvalidArgumentError, match="Python objects"):
        read_arrays(path)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999, 99)}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.ljust(128, b" "))
    with pytest.raises(InvalidArgumentError, match=r"a\.npz"):
        read_arrays(path)
    path.write_bytes(b"no archive")
    with pytest.raises(InvalidArgumentError, match=r"is no \.npz file"):
        read_arrays(path)


def test_shapes_are_read():
    assert parse_shapes(["a=1x128", "b=scalar", "c:0=7"]) == {"a": (1, 128), "b": (), "c:0": (7,)}
    with pytest.raises(InvalidArgumentError, match="twice"):
        parse_shapes(["a=1", "a=2"])


def test_a_pytorch_program_as_a_file(tmp_path, caplog):
    import torch

    from sparqle_tvm.studies.inputs import load_module

    path = tmp_path / "model.pt2"
    program = torch.export.export(torch.nn.Linear(FEATURES, 8).eval(), (torch.zeros(2, FEATURES),))
    torch.export.save(program, path)
    found = sparqle_tvm.analyze(load_module(path), [rows(2, 0)])
    assert found.call is None and found.exact
    caplog.clear()
    path.write_bytes(b"no archive")
    with pytest.raises(ModelFileError, match=r"model\.pt2"):
        load_module(path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ModelFileError, match=r"model\.pt2 .*did torch\.save write it\?"):
        load_module(path)
    # PyTorch logs a traceback besides.
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
