"""Objects in terminals and notebooks: one short line, and a table in which names are only text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning_cases import STARVED, spec_of, task_of_spec
from tvm.script import ir as I
from tvm.script import relax as R

import sparqle_tvm
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.showing import MAX_ROWS, html_table, text_table
from sparqle_tvm.tuning import Meter, Tuner


@I.ir_module
class Model:
    @R.function
    def main(q: R.Tensor(("n", 64), "int8"), w: R.Tensor((32, 64), "int8")):
        with R.dataflow():
            acc = R.matmul(q, R.permute_dims(w), out_dtype="int32")
            R.output(acc)
        return acc


def call(executable: Any) -> None:
    executable["main"](np.ones((3, 64), np.int8), np.ones((32, 64), np.int8))


def test_text_from_outside_is_text() -> None:
    assert text_table(("a", "bb"), [("x\ny", 1), ("\x1b[1m", 22)]).splitlines() == [
        "a        bb",
        "x y      1",
        "\\x1b[1m  22",
    ]
    page = html_table("<b>", ("<i>",), [("<script>",), (1234567,)])
    assert "<b>" not in page and "<i>" not in page and "<script>" not in page
    assert "1,234,567" in page


def test_long_tables_are_cut() -> None:
    page = html_table("t", ("n",), [(i,) for i in range(MAX_ROWS + 7)])
    assert page.count("<tr>") == MAX_ROWS + 2 and "7 more rows" in page


def test_simulated() -> None:
    executable = sparqle_tvm.compile(Model, engine="simulator")
    count = len(executable.programs)
    assert repr(executable) == f"<Executable: 1 dense ops split, {count} accelerator programs>"
    assert "int8 x int8" in executable._repr_html_()
    assert "was called in this thread" in repr(executable.profile())
    call(executable)
    profile = executable.profile()
    cycles, moved = f"{profile.total_cycles:,}", f"{profile.dram_bytes:,}"
    assert repr(profile) == f"<Profile: 1 ops, {cycles} cycles, {moved} bytes from and to DRAM>"
    assert f">{cycles}</td>" in profile._repr_html_()
    program = executable.programs[0]
    instructions = len(program.instructions)
    assert repr(program) == f"<Program: acc for sparqle/edge, {instructions} instructions>"
    assert "MMA" in program._repr_html_()


def test_of_the_host_there_is_no_profile_and_it_says_why() -> None:
    executable = sparqle_tvm.compile(Model)
    assert repr(executable) == "<Executable: 1 dense ops split, kernels of this CPU>"
    call(executable)
    profile = executable.profile()
    assert len(profile) == 0 and 'compile with engine="simulator"' in repr(profile)
    assert "kernels of this CPU" in profile._repr_html_()
    with pytest.raises(InvalidArgumentError, match="no accelerator programs"):
        profile.energy()


def test_tuning(tmp_path: Path) -> None:
    task = task_of_spec(spec_of())
    result = Tuner(Meter(STARVED), "latency", tmp_path, ranking="random").run([task], 2)
    assert repr(result).startswith("<TuningResult: 1 ops, 2 trials for latency, ")
    assert task.name in result._repr_html_()
