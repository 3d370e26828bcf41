"""Repeated layers become one function: found, called, lowered once, with the same results."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import Runnable, apply, assert_equal_bits, assert_unchanged
from repeated_layers import WIDTH, repeated_model, repeated_parts
from tvm import relax
from tvm.relax import op as R

from sparqle_tvm.compiler import lowering_passes
from sparqle_tvm.passes import OutlineRepeats
from sparqle_tvm.passes._rewrite import has_mark, relax_functions
from sparqle_tvm.passes.outline_repeats import LEAST_SAVED, REPEAT


def _called(func: relax.Function) -> Counter[str]:
    """How often a function calls each other one."""
    values = [each.value for block in func.body.blocks for each in block.bindings]
    return Counter(
        str(each.op.name_hint)
        for each in values
        if isinstance(each, relax.Call) and isinstance(each.op, tvm.ir.GlobalVar)
    )


def _without_outlining() -> list[Any]:
    """The passes that lower, each layer by itself."""
    left_out, steps = {"OutlineRepeats", "HoistConstants"}, lowering_passes()
    found = [each for each in steps if str(each.info.name) not in left_out]
    assert len(found) == len(steps) - 2
    return found


def _run(mod: tvm.IRModule, steps: list[Any], *args: np.ndarray) -> Any:
    built = relax.build(mod, "llvm", relax_pipeline=tvm.transform.Sequential(steps))
    found = relax.VirtualMachine(built, tvm.cpu())["main"](*map(tvm.runtime.tensor, args))
    return found.numpy()


def test_equal_layers_are_one_function() -> None:
    before = repeated_model(30)
    after, report = apply(OutlineRepeats, before)
    (name,) = repeated_parts(after)
    assert report.rewritten["OutlineRepeats"] == 1
    assert _called(after["main"]) == {name: 30}
    # 2 bindings before and behind, 30 calls; each layer had 13.
    count = sum(len(block.bindings) for block in after["main"].body.blocks)
    assert count <= 33
    assert sum(len(block.bindings) for block in before["main"].body.blocks) >= 30 * 13


def test_layers_that_differ_have_functions_of_their_own() -> None:
    odd = frozenset(range(0, 30, 3))
    after, _ = apply(OutlineRepeats, repeated_model(30, odd=odd))
    counts = sorted(_called(after["main"]).values())
    assert counts == [10, 20]


def test_a_layer_alone_stays() -> None:
    after, _ = apply(OutlineRepeats, repeated_model(30, odd=frozenset({7})))
    assert list(_called(after["main"]).values()) == [29]
    count = sum(len(block.bindings) for block in after["main"].body.blocks)
    assert count >= 29 + 13


def test_what_saves_little_stays() -> None:
    # Two layers: one of them is saved, less its two calls with a result each.
    fits = LEAST_SAVED + 4
    assert not assert_unchanged(OutlineRepeats, repeated_model(2, steps=fits - 6))
    after, _ = apply(OutlineRepeats, repeated_model(2, steps=fits))
    assert list(_called(after["main"]).values()) == [2]


@settings(max_examples=10, deadline=None)
@given(
    st.integers(3, 9),
    st.integers(8, 20),
    st.frozensets(st.integers(0, 8), max_size=4),
    st.integers(1, 5),
)
def test_results_are_the_same_bit_for_bit(
    layers: int, steps: int, odd: frozenset[int], rows: int
) -> None:
    mod = repeated_model(layers, steps, odd, seed=rows)
    x = np.random.default_rng(rows).normal(size=(rows, WIDTH * 4)).astype(np.float32)
    assert_equal_bits(_run(mod, lowering_passes(), x), _run(mod, _without_outlining(), x))


def test_thirty_layers_are_lowered_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every op that LegalizeOps lowers goes through a builder's call_te: count those.
    calls: Counter[int] = Counter()
    layers = 0
    lowered = relax.BlockBuilder.call_te

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        calls[layers] += 1
        return lowered(self, *args, **named)

    monkeypatch.setattr(relax.BlockBuilder, "call_te", counted)
    sizes: dict[int, list[int]] = {}
    for layers in (10, 30):
        steps: list[Any] = [*lowering_passes()[:5], _Sizes(sizes.setdefault(layers, []))]
        with tvm.target.Target("llvm"):
            tvm.transform.Sequential(steps)(repeated_model(layers))
    assert calls[30] == calls[10] > 10
    # The functions of layers have the same size; the caller has a binding per call.
    assert sizes[30][1:] == sizes[10][1:]
    assert sizes[30][0] - sizes[10][0] == 20


@tvm.transform.module_pass(opt_level=0, name="Sizes")
class _Sizes:
    """Notes the number of bindings of each function, the caller's first."""

    def __init__(self, found: list[int]) -> None:
        self.found = found

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        functions = sorted(relax_functions(mod), key=lambda each: has_mark(each[1], REPEAT))
        self.found += [
            sum(len(block.bindings) for block in func.body.blocks) for _, func in functions
        ]
        return mod


def test_texts_and_tensors_of_any_length_become_parameters() -> None:
    """Calls of packed functions, as of accelerator programs, differ in label and program."""
    seen: list[tuple[str, int]] = []

    @tvm.register_global_func("test.outline.launch", override=True)
    def launch(label: str, program: Any, x: Any, out: Any) -> None:
        seen.append((str(label), int(program.shape[0])))
        out.copyfrom(x)

    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y: Any = x
            for i in range(8):
                program = relax.const(np.zeros(20 + i, np.uint8))
                y = builder.emit(R.nn.relu(y))
                arguments = relax.Tuple([tvm.ir.StringImm(f"op{i}"), program, y])
                y = builder.emit(
                    R.call_dps_packed("test.outline.launch", arguments, out_ty=x.ty), "launched"
                )
                for _ in range(9):
                    y = builder.emit(R.add(y, relax.const(1.0, "float32")))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    after, _ = apply(OutlineRepeats, builder.get())
    assert list(_called(after["main"]).values()) == [8]
    found = Runnable(builder.get())(np.full((2, 4), -1, np.float32))
    assert_equal_bits(found, np.full((2, 4), 8 * 9, np.float32))
    assert seen == [(f"op{i}", 20 + i) for i in range(8)]


def test_parts_of_a_parameter_are_taken_before_the_calls() -> None:
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    factors = relax.Var("factors", relax.TensorType((32,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, factors]):
        with builder.dataflow():
            y: Any = x
            for i in range(8):
                part = builder.emit(R.strided_slice(factors, [0], [4 * i], [4 * i + 4]))
                y = builder.emit(R.nn.relu(R.multiply(y, part)))
                for _ in range(9):
                    y = builder.emit(R.add(y, relax.const(0.5, "float32")))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    mod = builder.get()
    after, _ = apply(OutlineRepeats, mod)
    assert list(_called(after["main"]).values()) == [8]
    args = np.arange(4, dtype=np.float32), np.linspace(-1, 1, 32, dtype=np.float32)
    assert_equal_bits(_run(mod, lowering_passes(), *args), _run(mod, _without_outlining(), *args))


def test_numbers_of_run_time_stay_where_they_are() -> None:
    """A scalar that is no symbol of a shape is no part of a function."""
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    scale = relax.Var("scale", tvm.ir.PrimType("float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, scale]):
        with builder.dataflow():
            y: Any = x
            for _ in range(6):
                arguments = relax.Tuple([y, scale])
                y = builder.emit(R.call_dps_packed("test.outline.any", arguments, out_ty=x.ty))
                for _ in range(20):
                    y = builder.emit(R.add(y, relax.const(0.5, "float32")))
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    after, _ = apply(OutlineRepeats, builder.get())
    assert list(_called(after["main"]).values()) == [6]
    (part,) = repeated_parts(after).values()
    assert not relax.analysis.free_vars(part)
    launched = [
        each
        for block in after["main"].body.blocks
        for each in block.bindings
        if "test.outline.any" in str(each.value)
    ]
    assert len(launched) == 6
