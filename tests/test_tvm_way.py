"""What a TVM user types, in fresh processes: TVM's own calls build, tune, export and load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
import numpy as np, tvm
from tvm import relax
from tvm.relax import op

rng = np.random.default_rng(0)
q = rng.integers(-128, 128, (5, 64)).astype("int8")
weights = [rng.integers(-8, 8, (64, 64)).astype("int8") for _ in range(3)]

def model():
    builder = relax.BlockBuilder()
    x = relax.Var("q", relax.TensorType((tvm.tirx.Var("n", "int64"), 64), "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for weight in weights:
                acc = builder.emit(op.matmul(y, builder.emit(op.permute_dims(relax.const(weight))),
                                             out_dtype="int32"))
                # Plain ops of a CPU around the dense ops.
                act = builder.emit(op.nn.silu(builder.emit(op.astype(acc, "float32"))))
                step = builder.emit(op.round(builder.emit(op.divide(act, relax.const(64.0)))))
                y = builder.emit(op.astype(builder.emit(op.clip(step, -127, 127)), "int8"))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.finalize()

def call(executable):
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(q)).numpy()

Model = model()
expected = call(relax.build(Model, "llvm"))
"""


def run_python(code: str, folder: Path, *, environment: dict[str, str] | None = None) -> str:
    """Run in a fresh process and return what it says; a failure shows what it wrote."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_one_target_builds_and_calls(tmp_path: Path) -> None:
    code = """
target = tvm.target.Target("sparqle/edge")
assert target.kind.name == "llvm" and "sparqle" in list(target.keys)
simulated = tvm.target.Target({"tag": "sparqle/edge", "feature.engine": "simulator"})
built = [
    relax.build(Model, "sparqle/edge", relax_pipeline="sparqle"),
    relax.build(Model, target, relax_pipeline="sparqle", exec_mode="compiled"),
    tvm.compile(Model, target, relax_pipeline="sparqle"),
    tvm.compile(Model, "sparqle/mobile", relax_pipeline=relax.get_pipeline("sparqle")),
    relax.build(Model, simulated, relax_pipeline="sparqle"),
    # Without our pipeline it is a CPU like any other, and so is a module in split form.
    relax.build(Model, target),
    tvm.compile(Model, target),
    tvm.compile(relax.get_pipeline("sparqle", stop_after="split")(Model), target),
]
for executable in built:
    assert np.array_equal(call(executable), expected)
with target:
    mod = relax.get_pipeline("sparqle")(Model)
assert np.array_equal(call(relax.build(mod, target, relax_pipeline=None)), expected)

import sparqle_tvm
from sparqle_tvm.errors import TargetError
for each in (target, simulated):
    ours = sparqle_tvm.compile(Model, each)
    assert np.array_equal(ours["main"](q).numpy(), expected)
    assert len(ours.profile()) == (3 if each is simulated else 0)
    # The same module as by TVM's calls, down to the last op.
    lowered = sparqle_tvm.compile(Model, each, stop_after="lower")
    with each:
        tvm.ir.assert_structural_equal(relax.get_pipeline("sparqle")(Model), lowered)
# The machine is that of the target, programs included.
for name in ("sparqle/edge", "sparqle/mobile"):
    each = tvm.target.Target({"tag": name, "feature.engine": "simulator"})
    (machine,) = {p.header.accelerator.name for p in sparqle_tvm.compile(Model, each).programs}
    assert machine == name
try:
    relax.build(Model, "sparqle/mobile", relax_pipeline=sparqle_tvm.pipeline("sparqle/edge"))
    raise AssertionError
except TargetError as error:
    assert "is for 'sparqle/edge', and the module is built for 'sparqle/mobile'" in str(error)
old = tvm.target.Target({"kind": "ext_dev", "keys": ["sparqle"], "feature.rows": 16})
for attempt in (
    lambda: relax.build(Model, old, relax_pipeline="sparqle"),
    lambda: sparqle_tvm.compile(Model, old),
):
    try:
        attempt()
        raise AssertionError
    except TargetError as error:
        assert "accelerators are of kind 'llvm' now" in str(error)
"""
    run_python(MODEL + code, tmp_path)


def test_the_pipeline_among_others(tmp_path: Path) -> None:
    code = """
import logging, sparqle_tvm
from sparqle_tvm.passes import PassReport
T = relax.transform
target = tvm.target.Target("sparqle/edge")

class Heard(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())
heard = []
logging.getLogger("sparqle_tvm").addHandler(Heard(logging.WARNING))

def build(*before, after=()):
    report = PassReport()
    steps = [*before, relax.get_pipeline("sparqle", report=report), *after]
    executable = relax.build(Model, target, relax_pipeline=tvm.transform.Sequential(steps))
    assert np.array_equal(call(executable), expected)
    return report

early = "0 of 3 matmuls rewritten: they were legalized to call_tir before SplitPrecision"
for before in (
    [T.LegalizeOps()],
    [T.LegalizeOps(), T.AnnotateTIROpPattern(), T.FuseOps()],
    [relax.get_pipeline("zero")],
):
    heard.clear()
    report = build(*before)
    assert early in [entry.reason for entry in report.skipped], (before, report.skipped)
    assert heard == [early], heard
    assert early in str(report)
heard.clear()
# Before ours may come what keeps high-level ops; of FuseOps, what has no patterns to fuse.
for before in ([], [T.FoldConstant()], [T.CanonicalizeBindings()], [T.FuseOps()],
               [T.EliminateCommonSubexpr(), T.DeadCodeElimination()]):
    assert len(build(*before).split) == 3 and not heard
# Ours up to a phase, then TVM's own passes and dlight over what is left.
import tvm.s_tir.dlight as dl
split = relax.get_pipeline("sparqle", stop_after="drain")
rest = [T.LegalizeOps(), T.AnnotateTIROpPattern(), T.FuseOps(), T.FuseTIR()]
dlight = dl.ApplyDefaultSchedule(dl.cpu.GEMV())
steps = [split, *rest, dlight, relax.get_pipeline("default_build")]
executable = relax.build(Model, target, relax_pipeline=tvm.transform.Sequential(steps))
assert np.array_equal(call(executable), expected)
"""
    run_python(MODEL + code, tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    code = """
for engine in ("host", "simulator"):
    target = tvm.target.Target({"tag": "sparqle/edge", "feature.engine": engine})
    executable = relax.build(Model, target, relax_pipeline="sparqle")
    for ending in ("so", "tar"):
        executable.export_library(f"{engine}.{ending}")
np.savez("values.npz", q=q, expected=expected)
"""
    run_python(MODEL + code, folder)
    return folder


LOAD = """
import numpy as np, sys, tvm
from tvm import relax
values = np.load("values.npz")
for ending in ("so", "tar"):
    executable = tvm.runtime.load_module(f"{ENGINE}.{ending}")
    vm = relax.VirtualMachine(executable, tvm.cpu())
    found = vm["main"](tvm.runtime.tensor(values["q"])).numpy()
    assert np.array_equal(found, values["expected"])
"""


@pytest.mark.parametrize("first", ["", "import sparqle_tvm"])
@pytest.mark.parametrize("engine", ["host", "simulator"])
def test_exported_modules_run_in_a_fresh_process(exported: Path, engine: str, first: str) -> None:
    run_python(f"ENGINE = {engine!r}\n{first}\n{LOAD}", exported)


def test_without_the_plugin_kernels_run_and_programs_say_what_is_missing(exported: Path) -> None:
    alone = {"TVM_DEVICE_BACKEND_AUTOLOAD": "0"}
    code = f"""
ENGINE = "host"
{LOAD}
assert not any(name.startswith("sparqle_tvm") for name in sys.modules)
try:
    vm = relax.VirtualMachine(tvm.runtime.load_module("simulator.so"), tvm.cpu())
    vm["main"](tvm.runtime.tensor(values["q"]))
    raise SystemExit("it ran")
except Exception as error:
    assert "sparqle.launch" in str(error) or "sparqle.balance_rows" in str(error), error
import sparqle_tvm._plugin
sparqle_tvm._plugin.register()
ENGINE = "simulator"
{LOAD}
"""
    run_python(code, exported, environment=alone)
