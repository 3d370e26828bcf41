"""Equal layers of a decoder go through the split passes once, and are then what they were."""

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
from sparqle_tvm.passes import InlineLayers, OutlineLayers
from sparqle_tvm.passes._rewrite import relax_functions

SPLIT = ("SplitGroupedDense", "SplitPrecision", "FuseQuantize", "FoldScales", "ShareEncodings")


def test_the_split_passes_see_one_of_equal_layers(tmp_path: Path) -> None:
    """The integer products and encodings that each pass finds do not depend on the layers."""

    @tvm.instrument.pass_instrument
    class Count:
        def __init__(self) -> None:
            self.found: dict[str, int] = {}

        def run_before_pass(self, mod: tvm.IRModule, info: Any) -> None:
            text = mod.script(show_meta=False) if str(info.name) in SPLIT else ""
            ops = ("R.matmul(", "R.sparqle.", "R.nn.rms_norm(")
            self.found[str(info.name)] = sum(text.count(op) for op in ops)

    found = []
    for layers in (3, 30):
        path = TinyLlama(layers=layers).write(tmp_path / f"{layers}.gguf")
        model, count = from_gguf(path, progress=False), Count()
        hidden = tvm.IRModule({"hidden": model.template["hidden"]})
        with tvm.transform.PassContext(instruments=[count]):
            split = sparqle_tvm.compile(hidden, stop_after="split")
        found.append({name: count.found[name] for name in SPLIT})
        labels = [f"blk_{i}_ffn_down" for i in range(layers)]
        text = split.script(show_meta=False)
        assert all(text.count(f'label="{label}"') for label in labels)
    assert found[0] == found[1]
    assert min(found[0].values()) > 10


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
    modules = []
    for report, layers in zip(reports, (True, False), strict=True):
        found = compiler.phases(compiler.Options(attention="int8", report=report))
        steps = [each for name in ("import", "split") for each in found[name]]
        if not layers:
            once = ("OutlineLayers", "InlineLayers")
            steps = [each for each in steps if str(each.info.name) not in once]
        with tvm.target.Target("llvm"):
            modules.append(tvm.transform.Sequential(steps)(template))
    # Symbols that were bound anew may stand on the other side of a product.
    tvm.ir.assert_structural_equal(*map(_simplified, modules))
    assert reports[0] == reports[1]
    assert reports[0].split
    assert modules[0].script(show_meta=False).count('label="blk_2_attn"') > 2


def test_only_weights_that_are_parameters_are_taken_out() -> None:
    """Of constants, passes ask for the values."""
    assert not assert_unchanged(OutlineLayers, repeated_model(12))
    assert not assert_unchanged(InlineLayers, repeated_model(12))
