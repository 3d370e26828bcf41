"""Every integer form of docs/forms.md is split, and equals plain integers on both engines."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from form_cases import COLUMNS, DOCUMENT, FORMS, ROWS, document, module
from tvm import relax

from sparqle_tvm.passes import PassReport

Q = np.random.default_rng(0).integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8)


def run(mod: tvm.IRModule, target: tvm.target.Target | str, **how: object) -> np.ndarray:
    executable = relax.build(mod, target, **how)
    vm = relax.VirtualMachine(executable, tvm.cpu())
    return vm["main"](tvm.runtime.tensor(Q)).numpy()


@pytest.mark.parametrize("name", FORMS)
def test_form_is_split_and_exact(name: str) -> None:
    mod = module(name)
    # Without our passes, by TVM alone.
    expected = run(mod, "llvm")
    for engine, done in (("host", "SplitPrecision"), ("simulator", "OffloadDense")):
        report = PassReport()
        target = tvm.target.Target({"tag": "sparqle/edge", "feature.engine": engine})
        pipeline = relax.get_pipeline("sparqle", report=report)
        found = run(mod, target, relax_pipeline=pipeline)
        assert report.rewritten[done] == 1 and len(report.split) == 1
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_sums_that_may_not_fit_int32_stay_in_int64() -> None:
    q = relax.Var("q", relax.TensorType((1, 70000), "int8"))
    w = relax.Var("w", relax.TensorType((70000, 2), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [q, w]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.matmul(q, w, out_dtype="int64"))
        builder.emit_func_output(y)
    report = PassReport()
    from sparqle_tvm.passes import SplitPrecision

    SplitPrecision(report=report)(builder.finalize())
    (entry,) = report.skipped
    assert entry.reason == "accumulates in int64, and a sum of 70000 products may not fit int32"


def test_the_document_lists_them() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()
