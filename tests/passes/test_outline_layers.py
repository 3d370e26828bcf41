"""Equal layers of a decoder go through all passes once, and are what they were without that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
from gguf import GGMLQuantizationType as Kind
from pass_helpers import assert_unchanged
from repeated_layers import repeated_model
from tiny_llama import TinyLlama
from tvm import relax

import sparqle_tvm
from sparqle_tvm import compiler
from sparqle_tvm.frontend.gguf import from_gguf
from sparqle_tvm.passes import CollectEncodings, InlineLayers, OutlineLayers
from sparqle_tvm.passes._rewrite import has_mark, relax_functions
from sparqle_tvm.passes._segments import segments_of
from sparqle_tvm.passes.outline_repeats import REPEAT
from sparqle_tvm.target.accelerator import Accelerator


def _counted(path: Path, **options: Any) -> list[tuple[str, int, int]]:
    """Each pass of a compilation, the bindings of layers that it sees, and those of all others."""
    stack: list[str] = []
    found = []

    @tvm.instrument.pass_instrument
    class Count:
        def run_before_pass(self, mod: tvm.IRModule, info: Any) -> None:
            stack.append(str(info.name))
            if len(stack) != 2:  # what passes do within, and the phases as one
                return
            counts = [0, 0]
            for _, func in relax_functions(mod):
                once = bool(segments_of(func)) or has_mark(func, REPEAT)
                counts[not once] += sum(len(block.bindings) for block in func.body.blocks)
            found.append((stack[-1], *counts))

        def run_after_pass(self, mod: tvm.IRModule, info: Any) -> None:
            stack.pop()

    model = from_gguf(path, progress=False)
    names = ("create_cache", "prefill", "token_limits")
    functions = tvm.IRModule({name: model.template[name] for name in names})
    with tvm.transform.PassContext(opt_level=3, instruments=[Count()]):
        sparqle_tvm.compile(
            functions, weights=model.weights, attention="int8", stop_after="lower", **options
        )
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "simulator", "collect_encodings": True, "default_window": "unsigned"},
        {"split": False},
    ],
)
def test_every_pass_sees_one_of_equal_layers(tmp_path: Path, options: dict[str, Any]) -> None:
    """The first finds them. Of 30 layers, others see as many bindings as of 3, and the calls."""
    few, many = (
        _counted(TinyLlama(layers=layers).write(tmp_path / f"{layers}.gguf"), **options)
        for layers in (3, 30)
    )
    given = {"CheckTarget", "OutlineLayers"}
    names = [name for name, *_ in few]
    assert [name for name, *_ in many] == names and len(names) > 28
    assert names[:2] == ["CheckTarget", "OutlineLayers"]
    assert options.get("split") is False or {"BalanceRows", "OffloadAttention"} <= set(names)
    for (name, layers, others), (_, more_layers, more_others) in zip(few, many, strict=True):
        assert more_layers == layers and (layers > 60 or name in given), name
        # Two calls, and what is made of the layer's weights or returned of its encodings.
        assert (more_others - others) / 27 < 70 or name in given, (name, others, more_others)


def _simplified(mod: tvm.IRModule) -> dict[str, Any]:
    functions = {}
    for gv, func in relax_functions(mod):
        symbols = relax.analysis.defined_symbolic_vars(func)
        renewed = {symbol: tvm.tirx.Var(str(symbol.name), "int64") for symbol in symbols}
        functions[str(gv.name_hint)] = func.bind_symbolic_vars(renewed) if renewed else func
    return functions


DIFFERENT = {"blk.0.ffn_up.weight": Kind.Q5_0, "blk.1.attn_v.weight": Kind.F16}


@pytest.mark.parametrize("kinds", [{}, DIFFERENT])
def test_layers_that_were_split_together_are_those_that_were_split_alone(
    tmp_path: Path, kinds: dict[str, Kind]
) -> None:
    """With two layers that differ, the two others are equal."""
    path = TinyLlama(layers=4, kinds=kinds).write(tmp_path / "t.gguf")
    template = from_gguf(path, progress=False).template
    reports = [sparqle_tvm.passes.PassReport() for _ in range(2)]
    modules, collected = [], []
    for report, layers in zip(reports, (True, False), strict=True):
        options = compiler.Options(
            attention="int8",
            report=report,
            engine="simulator",
            accelerator=Accelerator.from_target("sparqle/edge"),
            collect=CollectEncodings(report=report),
            windows={"blk_3_ffn_down": "unsigned"},
        )
        found = compiler.phases(options)
        steps = [each for name in list(found)[:-2] for each in found[name]]
        if not layers:
            steps = [each for each in steps if str(each.info.name) != "OutlineLayers"]
        collected.append(options.collect.collected)
        with tvm.target.Target("llvm"):
            drained = tvm.transform.Sequential(steps)(template)
            modules.append(tvm.transform.Sequential([InlineLayers()])(drained))
            # Programs are named by the first op that has them: which that is may differ.
            offloaded = tvm.transform.Sequential([*found["offload"], InlineLayers()])(drained)
        assert offloaded.script(show_meta=False).count('R.str("blk_3_ffn_down")') == 3
    # Symbols that were bound anew may stand on the other side of a product.
    tvm.ir.assert_structural_equal(*map(_simplified, modules))
    assert reports[0].rows() == reports[1].rows()
    assert reports[0] == reports[1]
    assert collected[0] == collected[1]
    assert len(collected[0]["prefill"]) == 17
    assert reports[0].split
    assert modules[0].script(show_meta=False).count('label="blk_2_attn"') > 2


def test_only_weights_that_are_parameters_are_taken_out() -> None:
    """Of constants, passes ask for the values."""
    assert not assert_unchanged(OutlineLayers, repeated_model(12))
    assert not assert_unchanged(InlineLayers, repeated_model(12))
