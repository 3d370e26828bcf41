"""A model whose layers are compiled once tells of each of them what it told before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tiny_llama import TinyLlama

import sparqle_tvm
from sparqle_tvm import compiler
from sparqle_tvm.passes._rewrite import has_mark, relax_functions
from sparqle_tvm.passes.outline_repeats import REPEAT

LAYERS = 4
TOKENS = np.arange(1, 8, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> tvm.IRModule:
    path = TinyLlama(layers=LAYERS).write(Path(tmp_path_factory.mktemp("once")) / "tiny.gguf")
    return sparqle_tvm.frontend.from_gguf(path, progress=False).mod


def _flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every layer is lowered by itself."""
    lowering = compiler.lowering_passes

    def without() -> list[Any]:
        return [
            p for p in lowering() if str(p.info.name) not in ("OutlineRepeats", "HoistConstants")
        ]

    assert len(without()) == len(lowering()) - 2
    monkeypatch.setattr(compiler, "lowering_passes", without)


def _told(executable: Any) -> dict[str, Any]:
    """What a call of `hidden` and of the functions with a cache gives, and what is said of it."""
    hidden = executable["hidden"](TOKENS)
    told = {
        "hidden": hidden.numpy().tobytes(),
        "profile": executable.profile().to_json(),
        "report": executable.report.rows(),
        "encodings": [
            (e.label, e.window, [c.label for c in e.consumers], e.pbm.tobytes())
            for e in executable.encodings
        ],
    }
    cache = executable["create_cache"]()
    told["prefill"] = executable["prefill"](TOKENS, cache)[0].numpy().tobytes()
    told["decode"] = executable["decode"](TOKENS[:, :1], cache)[0].numpy().tobytes()
    return told


@pytest.mark.parametrize("engine", ["host", "simulator"])
def test_labels_reports_and_results_are_unchanged(
    module: tvm.IRModule, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"engine": engine, "attention": "int8", "collect_encodings": True}
    once = _told(sparqle_tvm.compile(module, "sparqle/edge", **options))
    _flat(monkeypatch)
    assert once == _told(sparqle_tvm.compile(module, "sparqle/edge", **options))
    labels = [record[0] for record in once["encodings"]]
    assert [f"blk_{i}_ffn_down" for i in range(LAYERS)] == [
        label for label in labels if label.endswith("ffn_down")
    ]
    ops = [op["label"] for op in once["profile"]["ops"]]
    assert sum(op.endswith("ffn_down") for op in ops) == LAYERS * (engine == "simulator")


def test_functions_of_a_model_have_a_few_bindings_per_layer(module: tvm.IRModule) -> None:
    with tvm.target.Target("llvm"):
        offloaded = sparqle_tvm.compile(module, "sparqle/edge", stop_after="offload")
        (outline,) = [p for p in compiler.lowering_passes() if p.info.name == "OutlineRepeats"]
        after = outline(offloaded)
    sizes = {
        str(gv.name_hint): sum(len(block.bindings) for block in func.body.blocks)
        for gv, func in relax_functions(after)
        if not has_mark(func, REPEAT)
    }
    before = {
        str(gv.name_hint): sum(len(block.bindings) for block in func.body.blocks)
        for gv, func in relax_functions(offloaded)
    }
    for name in ("hidden", "prefill", "decode"):
        assert sizes[name] < before[name] / 2
