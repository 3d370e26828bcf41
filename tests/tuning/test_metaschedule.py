"""MetaSchedule's own calls tune dense ops, in a fresh process; one database for both ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, types
import numpy as np, tvm, tvm_ffi
# TVM parses intrinsics of GPUs before it tunes anything, for 20 s; tutorial 5 waits for them.
for gpu in ("cuda", "rocm"):
    name = f"tvm.s_tir.tensor_intrin.{gpu}"
    sys.modules[name] = types.ModuleType(name)
from tvm import relax
from tvm.relax import op
from tvm.s_tir import meta_schedule as ms
import sparqle_tvm
from sparqle_tvm import tuning
from sparqle_tvm.tuning.space import decisions_of

rng = np.random.default_rng(0)
builder = relax.BlockBuilder()
q = relax.Var("q", relax.TensorType((tvm.tirx.Var("n", "int64"), 96), "int8"))
with builder.function("main", [q]):
    with builder.dataflow():
        y = q
        for channels in (96, 96, 48):
            w = rng.integers(-8, 8, (channels, 96)).astype("int8")
            acc = builder.emit(op.matmul(y, op.permute_dims(relax.const(w)), out_dtype="int32"))
            y = builder.emit(op.astype(op.clip(op.right_shift(acc, relax.const(5)), -127, 127),
                                       "int8"))
        y = builder.emit_output(y)
    builder.emit_func_output(y)
mod = builder.finalize()
target = tvm.target.Target("sparqle/edge")

tasks = tuning.dense_module(mod, target, rows=(48,))
found = ms.relax_integration.extract_tasks(tasks, target, {})
assert sorted((t.task_name, t.weight) for t in found) == [
    ("dense_48x48x96", 1), ("dense_48x96x96", 2)
]
# The same by the name of a pipeline, of the module and of what the split phase leaves.
with target:
    named = relax.get_pipeline("sparqle_tasks", rows=(48,))
    split = relax.get_pipeline("sparqle", stop_after="split")(mod)
    for before in (mod, split):
        tvm.ir.assert_structural_equal(named(before), tasks)
ours = tuning.extract_tasks(mod, target, rows=(48,))
for task in ours:
    # The same workloads as those of sparqle_tvm.tune.
    same = tvm_ffi.structural_equal
    assert any(same(t.dispatched[0], task.workload()) for t in found)

objects = tuning.objects(target, "latency", seed=1)
assert objects["num_trials_per_iter"] == 8
database = ms.relax_integration.tune_relax(
    tasks, {}, target, "relax", max_trials_global=12, **objects
)
records = database.get_all_tuning_records()
# As many as were asked for, where TVM's own scheduler ends with a whole batch.
assert len(records) == 12, len(records)
# sparqle_tvm.tune tries the same, in the same order.
sparqle_tvm.tune(mod, target, trials=12, work_dir="same", rows=(48,), seed=1, progress=False)
def tried(folder):
    return [(e.task, e.decisions, e.value) for e in tuning.TuningDatabase(folder).entries]
assert tried("same") == tried("relax")
opened = tuning.TuningDatabase("relax")
meter = tuning.Meter(opened.settings.accelerator, tuning.ActivationData(seed=1))
assert meter.accelerator.name == "sparqle/edge"
for task in ours:
    mine = [entry for entry in opened.entries if entry.task == task]
    # The default was the first trial; figures are those of the simulator.
    default = tuning.default_of(task, meter.accelerator)
    assert default in [entry.decisions for entry in mine]
    for entry in mine[:2]:
        assert entry.value == meter.measure(task, entry.decisions).cycles
# As an object, and one in memory.
memory = ms.database.MemoryDatabase()
for record in records:
    memory.commit_workload(record.workload.mod)
    memory.commit_tuning_record(record)
def best(known):
    return {task: min(e.value for e in known.entries if e.task == task) for task in ours}
assert best(tuning.TuningDatabase.open(memory)) == best(opened) == best(
    tuning.TuningDatabase.open(database))

# TVM's pass puts the best schedules into the functions.
with target:
    applied = relax.transform.MetaScheduleApplyDatabase("relax")(tasks)
values = {task.name: best(opened)[task] for task in ours}
for gv, function in applied.functions_items():
    if isinstance(function, tvm.tirx.PrimFunc):
        one = tvm.IRModule({"main": function})
        task = tuning.task.task_of(one)
        assert meter.measure(task, decisions_of(one)).cycles == values[task.name]

# tune_tir on one function; a model of TVM's over our features; the analytical engine.
name = next(gv.name_hint for gv, f in tasks.functions_items() if isinstance(f, tvm.tirx.PrimFunc))
tir = tvm.IRModule({name: tasks[name]})
ms.tune_tir(tir, target, "tir", max_trials_global=4, **{
    "space": objects["space"], "builder": tuning.builder(), "num_trials_per_iter": 4,
    "strategy": tuning.search_strategy(target),
    "runner": tuning.runner("weighted:0.5", engine="analytical"),
    "cost_model": ms.cost_model.XGBModel(extractor=tuning.feature_extractor(target),
                                         num_tuning_cores=1, verbose_eval=0),
})
found = ms.database.JSONDatabase(work_dir="tir").get_all_tuning_records()
# The default alone, then a batch.
assert 4 <= len(found) < 8, len(found)

# What else one may type ends in a message that names the call to make.
def refused(call, *words):
    try:
        call()
    except sparqle_tvm.errors.SparqleError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(words)
with target:
    legalized = relax.get_pipeline("zero")(mod)
refused(lambda: ms.relax_integration.tune_relax(
    legalized, {}, target, "wrong", max_trials_global=4, **objects), "tuning.dense_module(mod")
# TVM's defaults for CPUs want to know how many cores there are.
counted = tvm.target.Target({"tag": "sparqle/edge", "num-cores": 2})
refused(lambda: ms.relax_integration.tune_relax(
    tasks, {}, counted, "wrong", max_trials_global=4, builder=tuning.builder(),
    runner=tuning.runner()), "tuning.objects(target)")
with counted:
    refused(lambda: relax.transform.MetaScheduleTuneIRMod({}, "wrong", 4)(tasks),
            "tuning.objects(target)")

# sparqle_tvm.tune goes on in a folder of its own, whose records TVM reads, and takes up.
result = sparqle_tvm.tune(mod, target, trials=4, work_dir="tune", rows=(48,), progress=False)
again = ms.database.JSONDatabase(work_dir="tune")
assert len(again.get_all_tuning_records()) == 4
ms.relax_integration.tune_relax(
    tasks, {}, target, "tune", max_trials_global=4, database=again, **objects
)
assert len(set(tried("tune"))) == len(tried("tune")) == 8

# A model is built with either, by the pipeline or by compile; the bits stay.
values = rng.integers(-128, 128, (48, 96)).astype("int8")
plain = relax.build(mod, "llvm")
expected = relax.VirtualMachine(plain, tvm.cpu())["main"](tvm.runtime.tensor(values)).numpy()
simulated = tvm.target.Target({"tag": "sparqle/edge", "feature.engine": "simulator"})
for known in ("relax", memory):
    compiled = sparqle_tvm.compile(mod, simulated, database=known)
    assert len(compiled.report.tuned) == 3, compiled.report.tuned
    assert np.array_equal(compiled["main"](values).numpy(), expected)
for known in ("tune", database):
    report = sparqle_tvm.passes.PassReport()
    pipeline = relax.get_pipeline("sparqle", database=known, report=report)
    executable = relax.build(mod, simulated, relax_pipeline=pipeline)
    assert len(report.tuned) == 3, report.tuned
    vm = relax.VirtualMachine(executable, tvm.cpu())
    assert np.array_equal(vm["main"](tvm.runtime.tensor(values)).numpy(), expected)
try:
    sparqle_tvm.compile(mod, "sparqle/mobile", engine="simulator", database="relax")
    raise AssertionError
except sparqle_tvm.errors.TuningError as error:
    assert "was tuned for accelerator 'sparqle/edge'" in str(error)
"""


def test_tvm_s_own_calls(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
