"""Programs run by compiled modules: every form of operands, other processes, bad programs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

import sparqle_tvm
from sparqle_tvm import numerics
from sparqle_tvm.errors import ProgramError
from sparqle_tvm.models.quantized import GroupedWeight, emit_grouped_dense
from sparqle_tvm.runtime.launch import recording

K, OUT = 64, 40


@I.ir_module
class Dynamic:
    """Quantizes its input; weights per channel, given when it is called."""

    @R.function
    def main(
        x: R.Tensor((1, "n", 64), "float32"),
        w: R.Tensor((40, 64), "int8"),
        w_scale: R.Tensor((40,), "float32"),
    ):
        with R.dataflow():
            amax = R.max(R.abs(x), axis=[-1], keepdims=True)
            floor = R.maximum(amax, R.const(1e-30, "float32"))
            scale = R.divide(floor, R.const(127.0, "float32"))
            q = R.astype(R.clip(R.round(R.divide(x, scale)), -127, 127), "int8")
            up = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            y = R.multiply(R.multiply(R.astype(up, "float32"), scale), w_scale)
            R.output(y)
        return y


def grouped_model(minimum: bool):
    """Constant 4-bit weights with a scale, and perhaps a minimum, per 32 columns."""
    rng = np.random.default_rng(1)
    low, high = (0, 16) if minimum else (-8, 8)
    weight = GroupedWeight(
        rng.integers(low, high, (K // 32, 32, OUT)).astype(np.int8),
        rng.uniform(1e-3, 1, (K // 32, 1, OUT)).astype(np.float16),
        rng.normal(size=(K // 32, OUT)).astype(np.float16) if minimum else None,
    )
    arrays = (weight.values, weight.scale, weight.minimum)
    constants = [None if array is None else relax.const(array) for array in arrays]
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 21, K), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            dense = emit_grouped_dense(x, *constants, "up")
            y = builder.emit_output(op.multiply(dense, relax.const(2.0, "float32")))
        builder.emit_func_output(y)
    return builder.finalize()


def operands(rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=(1, rows, K)).astype(np.float32)
    w = rng.integers(-128, 128, (OUT, K)).astype(np.int8)
    return x, w, rng.random(OUT, np.float32)


def expected(x, w, w_scale):
    q, scale = numerics.quantize_per_token(x[0])
    return ((numerics.int_matmul(q, w).astype(np.float32) * scale) * w_scale)[None]


@pytest.fixture(scope="module")
def dynamic():
    return sparqle_tvm.compile(Dynamic, engine="simulator")


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 70])
def test_a_symbolic_row_count_takes_the_smallest_program_that_fits(dynamic, rows):
    arguments = operands(rows, seed=rows)
    found = dynamic["main"](*arguments).numpy()
    assert found.tobytes() == expected(*arguments).tobytes()
    (record,) = dynamic.profile()
    buckets = sorted(program.header.op.m for program in dynamic.programs)
    assert record.rows == rows
    assert record.program.header.op.m == min(m for m in buckets if m >= rows)


@pytest.mark.parametrize("minimum", [False, True], ids=["scales", "minima"])
def test_grouped_weights_give_the_bits_of_the_plain_model(minimum):
    mod = grouped_model(minimum)
    x = operands(21)[0]
    simulated = sparqle_tvm.compile(mod, engine="simulator")
    plain = sparqle_tvm.compile(mod, split=False)
    assert simulated["main"](x).numpy().tobytes() == plain["main"](x).numpy().tobytes()
    (record,) = simulated.profile()
    assert (record.label, record.rows) == ("up", 21)
    assert ("W_MIN" in simulated.profile().totals()["dram_read_bytes"]) == minimum


def test_no_rows_run_no_program(dynamic):
    assert dynamic["main"](*operands(0)).numpy().shape == (1, 0, OUT)
    assert len(dynamic.profile()) == 0


def test_an_inner_recording_takes_its_launches_from_the_outer_one(dynamic):
    with recording() as outer:
        dynamic["main"](*operands(2))
        assert len(dynamic.profile()) == 1
    assert outer == []


def test_more_rows_than_any_program_holds(dynamic):
    most = max(program.header.op.m for program in dynamic.programs)
    with pytest.raises(ProgramError, match=f"'up' was compiled for at most {most} rows"):
        dynamic["main"](*operands(most + 1))


LOAD_AND_RUN = """
import json, sys
import numpy as np, sparqle_tvm
folder = sys.argv[1]
executable = sparqle_tvm.load(folder + "/model.so")
data = np.load(folder + "/in.npz")
out = executable["main"](data["x"], data["w"], data["w_scale"]).numpy()
np.save(folder + "/out.npy", out)
with open(folder + "/profile.json", "w") as file:
    json.dump(executable.profile().to_json(), file)
with open(folder + "/source.asm", "w") as file:
    file.write(executable.inspect_source())
"""


def test_export_runs_its_programs_in_a_fresh_process(dynamic, tmp_path):
    x, w, w_scale = operands(19)
    np.savez(tmp_path / "in.npz", x=x, w=w, w_scale=w_scale)
    dynamic.export(tmp_path / "model.so")
    subprocess.run([sys.executable, "-c", LOAD_AND_RUN, str(tmp_path)], check=True)
    here = dynamic["main"](x, w, w_scale).numpy()
    assert np.load(tmp_path / "out.npy").tobytes() == here.tobytes()
    assert here.tobytes() == expected(x, w, w_scale).tobytes()
    there = json.loads((tmp_path / "profile.json").read_text())
    assert there == json.loads(json.dumps(dynamic.profile().to_json()))
    assert there["totals"]["cycles"] > 0
    assert (tmp_path / "source.asm").read_text() == dynamic.inspect_source()
    assert dynamic.inspect_source().count("DRAIN") == len(dynamic.programs) > 1
