"""The pipeline as its users call it: compile, call, export, load, and what it says on bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import sparqle_tvm
from sparqle_tvm import compiler, numerics, passes
from sparqle_tvm.compiler import Options
from sparqle_tvm.errors import CompileError, InvalidArgumentError, QuantizationError, TargetError
from sparqle_tvm.numerics.attention import attention
from sparqle_tvm.numerics.kv_cache import KvStorage, plain
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.target.accelerator import Accelerator


@I.ir_module
class IntegerModel:
    @R.function
    def main(q: R.Tensor(("n", 33), "int8"), w: R.Tensor((7, 33), "int8")):
        with R.dataflow():
            acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            R.output(acc)
        return acc


@I.ir_module
class DynamicModel:
    @R.function
    def main(
        x: R.Tensor((1, "n", 64), "float32"),
        w: R.Tensor((12, 64), "int8"),
        w_scale: R.Tensor((12,), "float32"),
    ):
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[-1], keepdims=True)
            floor = R.maximum(amax, R.const(1e-30, "float32"))
            scale = R.divide(floor, R.const(119.0, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -119, 119), "int8")
            up = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            y = R.multiply(R.multiply(R.astype(up, "float32"), scale), w_scale)
            R.output(y)
        return y


@I.ir_module
class BatchModel:
    @R.function
    def main(q: R.Tensor((2, "n", 3, 16), "int8"), w: R.Tensor((16, 5), "int8")):
        n = T.int64()
        with R.dataflow():
            acc = R.matmul(q, w, out_dtype="int32")
            flat = R.reshape(acc, (2 * n * 3, 5))
            R.output(flat)
        return flat


def random_int8(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def test_compiled_integer_matmul_is_exact_for_any_row_count():
    rng = np.random.default_rng(0)
    executable = sparqle_tvm.compile(IntegerModel)
    w = random_int8(rng, 7, 33)
    for rows in (1, 2, 19):
        q = random_int8(rng, rows, 33)
        found = executable["main"](q, w).numpy()
        np.testing.assert_array_equal(found, numerics.int_matmul(q, w))


def test_batch_dimensions():
    rng = np.random.default_rng(1)
    executable = sparqle_tvm.compile(BatchModel)
    q, w = random_int8(rng, 2, 4, 3, 16), random_int8(rng, 16, 5)
    expected = numerics.int_matmul(q.reshape(-1, 16), np.ascontiguousarray(w.T))
    np.testing.assert_array_equal(executable["main"](q, w).numpy(), expected)


def test_split_and_plain_form_give_the_same_bits_and_the_encodings():
    rng = np.random.default_rng(2)
    x = rng.laplace(size=(1, 9, 64)).astype(np.float32)
    w, w_scale = random_int8(rng, 12, 64), rng.random(12, np.float32)
    plain = sparqle_tvm.compile(DynamicModel, split=False)
    split = sparqle_tvm.compile(DynamicModel, collect_encodings=True)
    found = split["main"](x, w, w_scale).numpy()
    assert found.tobytes() == plain["main"](x, w, w_scale).numpy().tobytes()
    (record,) = split.encodings
    q, scale = numerics.quantize_per_token(x[0], qmax=119)
    np.testing.assert_array_equal(record.pbm, numerics.encode(q).pbm)
    np.testing.assert_array_equal(record.scale, scale)
    assert (record.label, record.window) == ("up", "signed")
    assert record.info.window_reason == "centred on the zero point 0"
    assert [(dense.n, dense.k) for dense in record.consumers] == [(12, 64)]
    assert split.report.rewritten["FoldScales"] == 2


def test_plain_relax_build_with_the_registered_pipeline():
    rng = np.random.default_rng(3)
    q, w = random_int8(rng, 5, 33), random_int8(rng, 7, 33)
    built = relax.build(IntegerModel, "llvm", relax_pipeline=relax.get_pipeline("sparqle"))
    found = relax.VirtualMachine(built, tvm.cpu())["main"](
        tvm.runtime.tensor(q), tvm.runtime.tensor(w)
    )
    np.testing.assert_array_equal(found.numpy(), numerics.int_matmul(q, w))


def test_module_is_not_changed():
    before = IntegerModel.script()
    sparqle_tvm.compile(IntegerModel)
    assert IntegerModel.script() == before


def test_the_largest_values_are_exact_in_every_window():
    q = np.full((2, 33), 125, np.int8)
    q[1] = -128
    w = np.ones((7, 33), np.int8)
    expected = np.repeat([[125 * 33], [-128 * 33]], 7, axis=1)
    for window in (None, "signed", "unsigned"):
        executable = sparqle_tvm.compile(
            IntegerModel, default_window=window, collect_encodings=True
        )
        np.testing.assert_array_equal(executable["main"](q, w).numpy(), expected)
        assert executable.encodings[0].window == (window or "signed")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_activation_is_named(bad):
    rng = np.random.default_rng(4)
    x = rng.random((1, 3, 64), np.float32)
    x[0, 1, 7] = bad
    executable = sparqle_tvm.compile(DynamicModel, collect_encodings=True)
    with pytest.raises(QuantizationError, match=r"activation of up holds NaN or Inf in row 1"):
        executable["main"](x, random_int8(rng, 12, 64), np.ones(12, np.float32))


def test_export_and_load_in_a_fresh_process(tmp_path):
    rng = np.random.default_rng(5)
    q, w = random_int8(rng, 6, 33), random_int8(rng, 7, 33)
    np.savez(tmp_path / "in.npz", q=q, w=w)
    library = tmp_path / "model.so"
    sparqle_tvm.compile(IntegerModel).export(library)
    code = (
        "import sys, numpy as np, sparqle_tvm\n"
        "data = np.load(sys.argv[1])\n"
        "out = sparqle_tvm.load(sys.argv[2])['main'](data['q'], data['w']).numpy()\n"
        "np.save(sys.argv[3], out)\n"
    )
    arguments = [str(tmp_path / name) for name in ("in.npz", "model.so", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), numerics.int_matmul(q, w))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "model.so", "out.npy"]


def test_bad_input(tmp_path):
    with pytest.raises(TargetError, match="unknown target 'sparqle/none'"):
        sparqle_tvm.compile(IntegerModel, "sparqle/none")
    with pytest.raises(TargetError, match="not a sparqle accelerator"):
        sparqle_tvm.compile(IntegerModel, tvm.target.Target("llvm"))
    with pytest.raises(InvalidArgumentError, match='window "up" of'):
        sparqle_tvm.compile(IntegerModel, windows={"acc": "up"})
    executable = sparqle_tvm.compile(IntegerModel)
    with pytest.raises(InvalidArgumentError, match=r'called by name: executable\["main"\]'):
        executable(np.zeros((4, 8), np.int8))
    with pytest.raises(InvalidArgumentError, match="no function prefill"):
        executable["prefill"]
    with pytest.raises(InvalidArgumentError, match=r"end in \.so"):
        executable.export(tmp_path / "model.zip")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        executable.export(tmp_path / "none" / "model.so")
    with pytest.raises(CompileError, match="No such file"):
        sparqle_tvm.load(tmp_path / "model.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(CompileError, match="is no exported module"):
        sparqle_tvm.load(broken)


PHASES = ["import", "split", "choose", "drain", "offload", "lower"]


def ops_of(mod):
    """Names of the ops that a module calls."""
    names = set()

    def note(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            names.add(str(expr.op.name))

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, note)
    return names


def test_phases_are_a_table_of_contents():
    found = compiler.phases(Options())
    assert list(found) == PHASES
    assert found["offload"] == []
    options = Options(engine="simulator", accelerator=Accelerator.from_target("sparqle/edge"))
    names = {
        phase: [str(each.info.name) for each in steps]
        for phase, steps in compiler.phases(options).items()
    }
    assert names["import"] == ["OutlineLayers", "CanonicalizeBindings", "LowerQDQ"]
    assert names["split"][-2:] == ["ShareEncodings", "ReportLeft"]
    assert names["choose"] == []
    assert names["drain"] == ["DrainEncoded"]
    assert names["offload"] == ["JoinDense", "BalanceRows", "OffloadDense", "OffloadAttention"]
    assert "LegalizeHost" in names["lower"]
    chosen = compiler.phases(Options(default_window="unsigned"))["choose"]
    assert [str(each.info.name) for each in chosen] == ["ChooseWindow", "ReportLeft"]


def test_attention_in_integers_is_asked_for_by_every_form():
    options = Options(attention="int8")
    for phases in (compiler.phases, compiler.reference_phases, compiler.host_phases):
        names = [str(each.info.name) for each in phases(options)["import"]]
        assert names[-2:] == ["QuantizeAttention", "QuantizeCache"]
        left = [str(each.info.name) for each in phases(Options())["import"]]
        assert left == names[:-2]


@I.ir_module
class AttentionModel:
    @R.function
    def main(q: R.Tensor((1, "n", 4, 8), "float32")):
        with R.dataflow():
            y = R.nn.attention(q, q, q, causal_mask="BottomRight")
            R.output(y)
        return y


@pytest.mark.parametrize("split", [True, False])
def test_attention_in_integers_is_the_definition(split):
    q = np.random.default_rng(0).standard_normal((1, 9, 4, 8)).astype(np.float32)
    kv = KvStorage(plain(6), plain(8))
    options = {"split": split, "attention": "int8", "default_kv": kv}
    compiled = sparqle_tvm.compile(AttentionModel, **options)
    assert compiled.report.rewritten["QuantizeAttention"] == 1
    expected = attention(q[0], q[0], q[0], key_levels=31)
    np.testing.assert_array_equal(compiled["main"](q).numpy()[0], expected)


@pytest.mark.parametrize(
    ("phase", "has", "lacks"),
    [
        ("import", "relax.matmul", "relax.sparqle.quantize_encode"),
        ("split", "relax.sparqle.split_dense_scaled", "relax.matmul"),
        ("drain", "relax.sparqle.quantize_encode", "relax.call_tir"),
        ("offload", "relax.call_dps_packed", "relax.sparqle.split_dense_scaled"),
        ("lower", "relax.vm.kill_object", "relax.sparqle.quantize_encode"),
    ],
)
def test_stop_after_a_phase_gives_its_module(phase, has, lacks):
    mod = sparqle_tvm.compile(DynamicModel, engine="simulator", stop_after=phase)
    assert isinstance(mod, tvm.IRModule)
    assert has in ops_of(mod)
    assert lacks not in ops_of(mod)


@pytest.mark.parametrize("host", ["c", "cuda", "nonsense"])
def test_a_host_that_is_no_cpu_is_refused_while_building(host):
    with pytest.raises(TargetError, match=r"no CPU that|nonsense' is no target"):
        sparqle_tvm.compile(IntegerModel, host=host)


def test_a_target_that_is_no_cpu_is_refused_by_every_way_to_build():
    old = tvm.target.Target({"kind": "ext_dev", "keys": ["sparqle"], "feature.rows": 16})
    with pytest.raises(TargetError, match=r"accelerators are of kind 'llvm' now; use tvm\.target"):
        relax.build(IntegerModel, old, relax_pipeline="sparqle")
    with pytest.raises(TargetError, match="'ext_dev' is no CPU that kernels"):
        relax.build(IntegerModel, old, relax_pipeline=sparqle_tvm.pipeline("sparqle/edge"))
    legalize = relax.transform.LegalizeOps()
    alone = tvm.transform.Sequential([passes.SplitPrecision(), legalize])
    with tvm.target.Target("c"), pytest.raises(TargetError, match="'c' is no CPU"):
        alone(IntegerModel)
    with tvm.target.Target("c"):
        assert "relax.matmul" not in ops_of(sparqle_tvm.pipeline(stop_after="split")(IntegerModel))


def test_stop_after_without_split():
    mod = sparqle_tvm.compile(IntegerModel, split=False, stop_after="import")
    assert ops_of(mod) == {"relax.matmul", "relax.permute_dims"}
    choice = {"up": numerics.EncodingChoice()}
    merged = sparqle_tvm.compile(DynamicModel, split=False, choices=choice, stop_after="merge")
    assert "relax.matmul" in ops_of(merged)
    assert not {name for name in ops_of(merged) if name.startswith("relax.sparqle")}


@pytest.mark.parametrize(
    ("split", "known"), [(True, "import, split, choose, drain, offload, lower"), (False, "import")]
)
def test_an_unknown_phase_is_refused(split, known):
    with pytest.raises(InvalidArgumentError, match=f'"fold" is no phase; known: {known}'):
        sparqle_tvm.compile(IntegerModel, split=split, stop_after="fold")


def test_dump_writes_every_phase_as_text_that_parses(tmp_path):
    folder = tmp_path / "made" / "here"
    executable = sparqle_tvm.compile(DynamicModel, dump=folder)
    assert isinstance(executable, Executable)
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"0{number}_{phase}.py" for number, phase in enumerate(PHASES, start=1)]
    for number, phase in enumerate(PHASES[:5], start=1):
        text = (folder / f"0{number}_{phase}.py").read_text()
        expected = sparqle_tvm.compile(DynamicModel, stop_after=phase)
        tvm.ir.assert_structural_equal(tvm.script.from_source(text), expected, map_free_vars=True)
    assert "vm.builtin" in (folder / "06_lower.py").read_text()


def test_a_phase_that_fails_leaves_those_before_it_and_nothing_of_an_earlier_run(tmp_path):
    sparqle_tvm.compile(DynamicModel, dump=tmp_path)

    @tvm.transform.module_pass(opt_level=0, name="Refuse")
    def refuse(mod, _ctx):
        raise InvalidArgumentError("not this module")

    options = Options(checks=[refuse], dump=tmp_path)
    steps = compiler.sequence(compiler.phases(options), options)
    with pytest.raises(InvalidArgumentError, match="not this module"):
        steps(DynamicModel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01_import.py", "02_split.py"]


def test_a_dump_replaces_the_files_of_other_phases_and_leaves_the_user_s(tmp_path):
    (tmp_path / "01_notes.py").write_text("")
    sparqle_tvm.compile(DynamicModel, dump=tmp_path)
    sparqle_tvm.compile(DynamicModel, split=False, dump=tmp_path)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["01_import.py", "01_notes.py", "02_lower.py"]


def test_the_pass_dumps_too(tmp_path):
    steps = sparqle_tvm.pipeline(dump=str(tmp_path), stop_after="split")
    found = steps(IntegerModel)
    assert "relax.sparqle.split_dense" in ops_of(found)
    assert "R.sparqle.split_dense(" in (tmp_path / "02_split.py").read_text()
    relax.build(IntegerModel, "llvm", relax_pipeline=sparqle_tvm.pipeline(dump=tmp_path))
    assert len(list(tmp_path.iterdir())) == len(PHASES)


def test_a_dump_that_cannot_be_written_says_so(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(InvalidArgumentError, match="file cannot be written"):
        sparqle_tvm.compile(IntegerModel, dump=occupied)


def test_options_are_checked():
    with pytest.raises(InvalidArgumentError, match='"half" is neither "float" nor'):
        sparqle_tvm.pipeline(attention="half")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="needs an accelerator"):
        Options(engine="simulator")
    with pytest.raises(TypeError, match="unknown_option"):
        sparqle_tvm.pipeline(unknown_option=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'offload'"):
        sparqle_tvm.compile(IntegerModel, offload=None)  # type: ignore[call-arg]
