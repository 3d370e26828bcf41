"""A model whose layers are compiled once tells of each of them what it told before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from gguf import GGMLQuantizationType as Kind
from tiny_llama import TinyLlama

import sparqle_tvm
from sparqle_tvm import compiler
from sparqle_tvm.errors import CompileError
from sparqle_tvm.frontend.gguf import ImportedModel, from_gguf
from sparqle_tvm.passes._rewrite import has_mark, relax_functions
from sparqle_tvm.passes.outline_repeats import REPEAT
from sparqle_tvm.runtime.cache import key_of
from sparqle_tvm.runtime.exported import read_manifest

LAYERS = 2
TOKENS = np.arange(1, 8, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ImportedModel:
    path = TinyLlama(layers=LAYERS).write(Path(tmp_path_factory.mktemp("once")) / "tiny.gguf")
    return from_gguf(path, progress=False)


def _flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every layer goes through all passes by itself."""
    sequence = compiler.sequence

    def without(phases: Any, *given: Any) -> Any:
        once = ("OutlineLayers", "OutlineRepeats", "HoistConstants")
        left = {
            phase: [step for step in steps if str(step.info.name) not in once]
            for phase, steps in phases.items()
        }
        assert sum(map(len, phases.values())) - sum(map(len, left.values())) == len(once)
        return sequence(left, *given)

    monkeypatch.setattr(compiler, "sequence", without)


CACHED = ("create_cache", "prefill", "decode", "token_limits")


def _only(mod: tvm.IRModule, names: tuple[str, ...]) -> tvm.IRModule:
    """Some functions of a model: each is compiled by itself."""
    return tvm.IRModule({name: mod[name] for name in names})


def _told(executable: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What calls of the functions give, and what is said of the first of them."""
    told: dict[str, Any] = {"report": executable.report.rows()}
    cache = executable["create_cache"]() if "create_cache" in names else None
    for name in ("hidden", "prefill", "decode"):
        if name not in names:
            continue
        tokens = TOKENS[:, :1] if name == "decode" else TOKENS
        result = executable[name](tokens, *[cache] * (name != "hidden"))
        told[name] = (result if name == "hidden" else result[0]).numpy().tobytes()
        told.setdefault("profile", executable.profile().to_json())
        told.setdefault("encodings", list(map(_described, executable.encodings)))
    return told


def _described(record: Any) -> tuple[Any, ...]:
    consumers = [each.label for each in record.consumers]
    return record.label, record.window, consumers, record.pbm.tobytes()


@pytest.mark.parametrize("engine", ["host", "simulator"])
def test_labels_reports_and_results_are_unchanged(
    tiny: ImportedModel, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"engine": engine, "attention": "int8", "collect_encodings": True}
    options["weights"] = tiny.weights
    names = CACHED if engine == "host" else tuple(n for n in CACHED if n != "decode")
    template = _only(tiny.template, names)
    once = _told(sparqle_tvm.compile(template, "sparqle/edge", **options), names)
    _flat(monkeypatch)
    assert once == _told(sparqle_tvm.compile(template, "sparqle/edge", **options), names)
    labels = [record[0] for record in once["encodings"]]
    assert [f"blk_{i}_ffn_down" for i in range(LAYERS)] == [
        label for label in labels if label.endswith("ffn_down")
    ]
    ops = [op["label"] for op in once["profile"]["ops"]]
    assert sum(op.endswith("ffn_down") for op in ops) == LAYERS * (engine == "simulator")


def test_functions_of_a_model_have_a_few_bindings_per_layer(tiny: ImportedModel) -> None:
    """Of one whose weights are constants, too."""
    with tvm.target.Target("llvm"):
        offloaded = sparqle_tvm.compile(tiny.mod, "sparqle/edge", stop_after="offload")
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
        assert sizes[name] < before[name] * 0.7


KINDS = {
    "blk.0.attn_q.weight": Kind.Q4_0,
    "blk.0.attn_k.weight": Kind.Q8_0,
    "blk.0.attn_v.weight": Kind.F16,
    "blk.0.attn_output.weight": Kind.Q5_0,
    "blk.0.ffn_up.weight": Kind.Q5_1,
    "blk.0.ffn_gate.weight": Kind.IQ4_NL,
    "blk.0.ffn_down.weight": Kind.TQ1_0,
    "blk.1.attn_q.weight": Kind.TQ2_0,
    "blk.1.attn_k.weight": Kind.BF16,
    "blk.1.attn_v.weight": Kind.Q4_K,
    "blk.1.ffn_up.weight": Kind.Q3_K,
    "blk.1.ffn_down.weight": Kind.Q2_K,
    "blk.1.ffn_gate.weight": Kind.IQ4_XS,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ImportedModel:
    """A model with all types of weights, an output layer of its own, and two equal layers."""
    tiny = TinyLlama(
        embed=256, ffn=256, layers=4, embed_kind=Kind.Q4_1, output_kind=Kind.Q6_K, kinds=KINDS
    )
    return from_gguf(tiny.write(tmp_path_factory.mktemp("mixed") / "tiny.gguf"), progress=False)


@pytest.mark.parametrize("engine", ["host", "simulator"])
def test_weights_in_the_file_give_what_constants_give(mixed: ImportedModel, engine: Any) -> None:
    options: dict[str, Any] = {"engine": engine, "collect_encodings": True}
    # Kernels and programs of all types take long, and those of one function say enough.
    names: tuple[str, ...] = ("hidden",)
    if engine == "host":
        names, options["attention"] = ("create_cache", "prefill", "token_limits"), "int8"
    template, mod = (_only(each, names) for each in (mixed.template, mixed.mod))
    stored = sparqle_tvm.compile(template, weights=mixed.weights, **options)
    constants = sparqle_tvm.compile(mod, **options)
    assert _told(stored, names) == _told(constants, names)


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_weights_in_the_file_serve_the_forms_without_planes(
    mixed: ImportedModel, activations: Any
) -> None:
    model = from_gguf(mixed.file.path, activations=activations, progress=False)
    template, mod = (_only(each, ("hidden",)) for each in (model.template, model.mod))
    stored = sparqle_tvm.compile(template, weights=model.weights, split=False)
    constants = sparqle_tvm.compile(mod, split=False)
    results = [each["hidden"](TOKENS).numpy() for each in (stored, constants)]
    np.testing.assert_array_equal(*results)


def test_an_exported_module_maps_its_weights(mixed: ImportedModel, tmp_path: Path) -> None:
    functions = _only(mixed.template, ("hidden", "head"))
    executable = sparqle_tvm.compile(functions, weights=mixed.weights)
    executable.export(tmp_path / "m.so")
    kept = read_manifest(tmp_path / "m.so").facts.weights
    assert set(kept) == {"hidden", "head"}
    first = min(each.begin for tensors in kept.values() for each in tensors)
    everything = sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in kept["hidden"])
    # What stands before the weights is code: the module has none of them.
    assert everything > 4 * 7 * 256 * 200 > first / 3
    loaded = sparqle_tvm.load(tmp_path / "m.so")
    results = [each["hidden"](TOKENS) for each in (executable, loaded)]
    np.testing.assert_array_equal(*(each.numpy() for each in results))
    logits = [
        each["head"](hidden) for each, hidden in zip((executable, loaded), results, strict=True)
    ]
    np.testing.assert_array_equal(*(each.numpy() for each in logits))
    with (tmp_path / "m.so").open("rb+") as file:
        file.seek(first)
        file.write(b"\xff" * 8)
    with pytest.raises(CompileError, match="checksum"):
        sparqle_tvm.load(tmp_path / "m.so")


def test_what_is_compiled_is_found_by_the_weights_too(mixed: ImportedModel) -> None:
    assert mixed.sha256 in mixed.weights.content
    keys = {key_of(mixed.template, {"weights": content}) for content in ("one", "other")}
    assert len(keys) == 2
