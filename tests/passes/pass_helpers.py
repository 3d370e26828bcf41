"""What every pass test does: apply, hold to the rules of passes, build, run."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.compiler import lowering_passes
from sparqle_tvm.passes import PassReport

dialect.register()


def copy_of(mod: tvm.IRModule) -> tvm.IRModule:
    """A module that shares nothing with ``mod``."""
    return tvm.ir.load_json(tvm.ir.save_json(mod))


def assert_same(found: Any, expected: Any) -> None:
    """Structural equality; the numbers of constants count, the names of variables do not."""
    tvm.ir.assert_structural_equal(found, expected, map_free_vars=True)


def apply(make: Any, mod: tvm.IRModule, **options: Any) -> tuple[tvm.IRModule, PassReport]:
    """Run the pass ``make(report=..., **options)`` and hold it to what is true of every pass.

    The module given is not changed, the result is well formed, and a second run changes nothing.
    """
    report, original = PassReport(), copy_of(mod)
    after = make(report=report, **options)(mod)
    assert_same(mod, original)
    relax.analysis.well_formed(after)
    again = PassReport()
    assert_same(make(report=again, **options)(after), after)
    assert again.rewritten.total() == 0
    return after, report


def assert_changed(make: Any, before: Any, expected: Any, **options: Any) -> PassReport:
    """The pass turns ``before`` into ``expected``."""
    after, report = apply(make, before, **options)
    assert_same(after, expected)
    assert report.rewritten[make.__name__] > 0
    return report


def assert_unchanged(make: Any, mod: tvm.IRModule, **options: Any) -> list[str]:
    """The pass leaves ``mod`` alone; the reasons it gives."""
    after, report = apply(make, mod, **options)
    assert_same(after, mod)
    assert report.rewritten.total() == 0
    return [entry.reason for entry in report.skipped]


class Runnable:
    """A module built for the host, through ``passes`` and the lowering of our pipeline."""

    def __init__(self, mod: tvm.IRModule, *passes: Any) -> None:
        steps = [relax.transform.CanonicalizeBindings(), *passes, *lowering_passes()]
        built = relax.build(mod, "llvm", relax_pipeline=tvm.transform.Sequential(steps))
        self._vm = relax.VirtualMachine(built, tvm.cpu())

    def __call__(self, *args: np.ndarray, function: str = "main") -> Any:
        """Call a function with arrays; tuples come back as lists."""
        return _arrays(self._vm[function](*[tvm.runtime.tensor(a) for a in args]))


def _arrays(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else [_arrays(v) for v in value]


def assert_equal_bits(found: Any, expected: Any) -> None:
    """Arrays, or lists of arrays, that agree in dtype, shape and every bit."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal_bits(one, other)
        return
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
