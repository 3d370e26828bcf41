"""What a function makes of constants alone is made by its callers, and folded there."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from pass_helpers import assert_unchanged
from repeated_layers import WIDTH, repeated_model, repeated_parts
from tvm import relax

from sparqle_tvm.compiler import lowering_passes
from sparqle_tvm.passes import HoistConstants, LegalizeHost, OutlineRepeats


def test_weights_are_arranged_by_the_caller_and_folded() -> None:
    def lowered(*steps: Any) -> tvm.IRModule:
        with tvm.target.Target("llvm"):
            before = [OutlineRepeats(), LegalizeHost(), relax.transform.LegalizeOps(), *steps]
            return tvm.transform.Sequential(before)(repeated_model(12))

    def transposes(func: relax.Function) -> int:
        values = [each.value for block in func.body.blocks for each in block.bindings]
        return sum("transpose" in str(each.args[0]) for each in values if len(each.args) == 2)

    (inside,) = repeated_parts(lowered()).values()
    assert transposes(inside) == 1
    hoisted = lowered(HoistConstants())
    relax.analysis.well_formed(hoisted)
    (inside,) = repeated_parts(hoisted).values()
    assert transposes(inside) == 0
    assert transposes(hoisted["main"]) == 12
    assert assert_unchanged_by_hoisting(hoisted)


def assert_unchanged_by_hoisting(mod: tvm.IRModule) -> bool:
    """A second run finds nothing."""
    return not assert_unchanged(HoistConstants, mod)


def test_nothing_is_moved_where_nothing_was_outlined() -> None:
    assert not assert_unchanged(HoistConstants, repeated_model(3))


def test_results_keep_their_bits() -> None:
    mod, x = repeated_model(12), np.random.default_rng(1).normal(size=(5, WIDTH * 4))
    found = []
    for left_out in ((), ("HoistConstants",)):
        steps = [each for each in lowering_passes() if str(each.info.name) not in left_out]
        built = relax.build(mod, "llvm", relax_pipeline=tvm.transform.Sequential(steps))
        vm = relax.VirtualMachine(built, tvm.cpu())
        found.append(vm["main"](tvm.runtime.tensor(x.astype(np.float32))).numpy())
    assert np.array_equal(*found)
