"""Calibrating a tiny model, choosing by budget, compiling with it, and the Pareto curve."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tiny_files import write_tiny_model

import sparqle_tvm
from sparqle_tvm.calibration import Budget, Calibration, Search, kv
from sparqle_tvm.calibration.apply import CheckCalibration, select
from sparqle_tvm.calibration.fisher import squared_gradients
from sparqle_tvm.calibration.kv import choose_kv, kv_budget
from sparqle_tvm.calibration.loss import LossIncrease, MeasuredKv
from sparqle_tvm.cli import main
from sparqle_tvm.compiler import split_passes
from sparqle_tvm.errors import (
    CalibrationError,
    InvalidArgumentError,
    ResultFileError,
    TargetError,
    TextError,
)
from sparqle_tvm.files import plain, typed
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.numerics.kv_cache import parse_kv
from sparqle_tvm.report.generation import generation_document
from sparqle_tvm.report.pictures.pareto import write_pareto
from sparqle_tvm.report.run import run_document
from sparqle_tvm.report.writers import to_markdown
from sparqle_tvm.results.losses import ParetoResult
from sparqle_tvm.results.run import RunResult
from sparqle_tvm.studies.evaluation import evaluate
from sparqle_tvm.studies.generate import generate
from sparqle_tvm.studies.pareto import pareto
from sparqle_tvm.studies.run import run_model
from sparqle_tvm.target.accelerator import PRESETS

TEXT_TOKENS = 90
STORAGES = ("planes:2", "planes:4,4")


@pytest.fixture(scope="module")
def made(tiny):
    """What `sparqle calibrate` writes."""
    path = tiny.folder / "calib.npz"
    files = ["--model", str(tiny.folder / "tiny.gguf"), "--text", str(tiny.folder / "prose.txt")]
    report = tiny.folder / "calib.json"
    command = ["calibrate", *files, "--tokens", str(TEXT_TOKENS), "--out", str(path)]
    assert main([*command, "--json", str(report)]) == 0
    return path


@pytest.fixture(scope="module")
def in_integers(tiny):
    """A calibration with attention in int8, from its file; of two storages, for time."""
    text, path = tiny.folder / "prose.txt", tiny.folder / "int8.npz"
    given = (tiny.imported, text, TEXT_TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "CANDIDATES", STORAGES)
        found = sparqle_tvm.calibrate(*given, attention="int8", progress=False)
    found.save(path)
    assert Calibration.load(path).measured_kv == found.measured_kv
    return path


def test_attention_in_integers_meanwhile(tiny, made, in_integers):
    """The same encodings of the same model see other activations; a run takes either."""
    given = (tiny.imported, tiny.folder / "prose.txt", TEXT_TOKENS)
    floating, found = Calibration.load(made), Calibration.load(in_integers)
    assert found.fingerprint == floating.fingerprint and len(found.measured)
    assert floating.measured_kv == ()
    assert [m.storage for m in found.measured_kv] == list(STORAGES)
    assert all(m.increase.tokens == TEXT_TOKENS - 1 for m in found.measured_kv)
    behind, before = ([c[f"blk_{i}_attn_output"] for i in (0, 1)] for c in (found, floating))
    assert any((a.stored != b.stored).any() for a, b in zip(behind, before, strict=True))
    # Queries of the first block are computed before any attention.
    assert (found["blk_0_attn_q"].stored == floating["blk_0_attn_q"].stored).all()
    with pytest.raises(InvalidArgumentError, match="attention 'half' is unknown"):
        sparqle_tvm.calibrate(*given, attention="half", progress=False)


def test_a_budget_chooses_how_keys_and_values_are_stored(tiny, made, in_integers, capsys):
    """The smallest of what was measured within it, in runs and when generating."""
    measured = {m.storage: m.increase for m in Calibration.load(in_integers).measured_kv}
    # Measured as a run with that storage loses: the same form of the model, the same text.
    functions = tvm.IRModule({name: tiny.imported.mod[name] for name in ("hidden", "head")})
    options = {"split": False, "attention": "int8", "default_kv": parse_kv("planes:4,4")}
    coarse = evaluate(sparqle_tvm.compile(functions, **options), tiny.tokens[:TEXT_TOKENS])
    assert measured["planes:4,4"].perplexity == pytest.approx(coarse.perplexity, rel=1e-6)
    model, text = tiny.folder / "tiny.gguf", tiny.folder / "prose.txt"
    options = {"engine": "analytical", "calibration": in_integers, "progress": False}
    found = run_model(model, text, 24, kv="planes:900%", **options)
    assert found.exact and found.kv == "planes:4,4"
    assert found.kv_choice.increase.perplexity == measured["planes:4,4"].perplexity
    again = RunResult.from_json(json.loads(json.dumps(found.to_json())), "")
    assert again.kv_choice == found.kv_choice
    said = to_markdown(run_document(found))
    assert f"planes:4,4 (chosen by planes:900%; on {TEXT_TOKENS - 1} tokens of" in said
    tight = generate(["a dog"], 2, model, kv="planes:0%", **options)
    if tight.kv == "planes":  # no candidate lost less than nothing, error and all
        assert tight.kv_choice.increase is None
    assert "Keys and values are stored as planes" in to_markdown(generation_document(tight))
    files = ["--model", str(model), "--kv", "planes:1%"]
    for command, words in (
        (["generate", "--prompt", "a", *files], "calibrate --attention int8, and give its file"),
        (["run", *files, "--text", str(text)], "is a budget, which needs a calibration"),
        (["run", *files, "--text", str(text), "--calibration", str(made)], "has no measured"),
        (["estimate", "--kv", "planes:1%"], "run and sparqle generate take it with --calibration"),
    ):
        assert main(command) == 2
        assert words in capsys.readouterr().err


def increase(ratio: float, error: float = 0.0) -> LossIncrease:
    return LossIncrease(9, 10.0, 10.0 * (1 + ratio), np.log1p(ratio), error / (1 + ratio), 0.0, 0.0)


def test_chance_does_not_spend_a_budget():
    measured = [
        MeasuredKv("planes:2", increase(0.004, 0.002)),
        MeasuredKv("planes:4", increase(0.009, 0.002)),
        MeasuredKv("planes:4,4", increase(0.03)),
    ]
    # 0.9 % and a standard error of 0.2 % are not within 1 %.
    assert choose_kv(measured, 0.01) == measured[0]
    assert choose_kv(measured, 0.02) == measured[1]
    assert choose_kv(measured, 0.03) == measured[2]
    assert choose_kv(measured, 0.005) is None
    for text, share in (("planes:1%", 0.01), ("planes:0.5 %", 0.005), ("planes:2", None)):
        assert kv_budget(text) == share
    for text, message in (("planes:-1%", "0 % or more"), ("planes:x%", "neither a share")):
        with pytest.raises(InvalidArgumentError, match=message):
            kv_budget(text)


@pytest.fixture(scope="module")
def curve(tiny, made):
    budgets = (Budget(), Budget("sparsity", 0.6), Budget("perplexity", 0.5))
    text = tiny.folder / "prose.txt"
    known = Calibration.load(made)
    return pareto(
        known, tiny.imported, text, tokens=60, seen_text=text, budgets=budgets, progress=False
    )


def test_the_command_writes_a_calibration_with_measured_losses(tiny, made):
    known = Calibration.load(made)
    assert known.fingerprint == tiny.calibration.fingerprint
    assert known.tokens == TEXT_TOKENS and not known.has_fisher
    sparsities = [m.msb_sparsity for m in known.measured]
    assert sparsities == sorted(sparsities) and len(sparsities) == 3
    assert all(m.increase.tokens == TEXT_TOKENS - 1 and m.expected > 0 for m in known.measured)
    found = json.loads((tiny.folder / "calib.json").read_text())
    assert found["fingerprint"] == known.fingerprint and len(found["measured"]) == 3
    assert [e["label"] for e in found["encodings"]] == [e.label for e in known]


def test_digits_of_another_width_are_refused(made):
    wide = replace(PRESETS["sparqle/edge"], digit_bits=8)
    with pytest.raises(TargetError, match=r"'sparqle/edge' has digits of 8 bits, .* int8"):
        pareto(made, accelerator=wide)


def test_points_of_the_curve(curve, tmp_path):
    none, sparse, loose = curve.points
    assert none.budget == "no loss"
    for loss in (none.heldout, none.calibration):
        assert loss.perplexity_increase == loss.kl_nats == 0.0
    assert sparse.msb_sparsity > none.msb_sparsity and sparse.heldout.kl_nats > 0
    assert sparse.mma_cycles < none.mma_cycles and sparse.mma_reduction > none.mma_reduction
    assert loose.energy_joules > 0
    assert curve.heldout_tokens == 60
    assert typed(json.loads(json.dumps(plain(curve))), ParetoResult, "", ResultFileError) == curve
    write_pareto(curve, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidArgumentError, match="a picture ends in"):
        write_pareto(curve, tmp_path / "pareto.txt")


def test_compiled_with_a_budget(tiny, made):
    budget = Budget("sparsity", 0.7)
    selection = select(made, budget)
    only = tvm.IRModule({"hidden": tiny.imported.mod["hidden"]})
    executable = sparqle_tvm.compile(only, calibration=made, budget=budget, collect_encodings=True)
    assert executable.report.rewritten["RaiseMsbSparsity"] == len(selection.choices) > 0
    ids = tiny.tokens[None, :50]
    found = executable["hidden"](ids).numpy()
    # The same bits as with factors that are parameters.
    expected, observed = tiny.collector.call(ids, choices=selection.choices)
    np.testing.assert_array_equal(found, expected.numpy())
    counted = tiny.collector.encoded(observed, selection.choices, selection.windows)
    for record, encoding in zip(executable.encodings, counted, strict=True):
        assert record.label == encoding.label
        stored = int(np.unpackbits(record.pbm).sum())
        assert stored == encoding.nnz.total


def test_without_a_budget_nothing_is_lost(made):
    assert select(made).choices == {}
    with pytest.raises(InvalidArgumentError, match="needs a calibration"):
        sparqle_tvm.pipeline(budget=Budget("sparsity", 0.7))
    with pytest.raises(CalibrationError, match="no measured losses"):
        select(replace(Calibration.load(made), measured=()), Budget("perplexity", 0.01))


def test_another_model_is_refused(tiny, tmp_path):
    other = from_gguf(write_tiny_model(tmp_path, seed=5), progress=False)
    check = tvm.transform.Sequential(split_passes(checks=[CheckCalibration(tiny.calibration)]))
    only = tvm.IRModule({"hidden": tiny.imported.mod["hidden"]})
    assert check(only) is not None
    with pytest.raises(CalibrationError, match="blk_0_attn_q has other weights"):
        check(tvm.IRModule({"hidden": other.mod["hidden"]}))


def test_gradients_weigh_what_torch_gives(tiny):
    fisher = squared_gradients(tiny.imported, tiny.tokens[:40], progress=False)
    assert set(fisher) == {e.label for e in tiny.calibration}
    for encoding in tiny.calibration:
        assert fisher[encoding.label].shape == (encoding.columns,)
        assert (fisher[encoding.label] >= 0).all() and fisher[encoding.label].any()
    known = tiny.collector.result(model_name="t", text_name="t", tokens=40, fisher=fisher)
    assert Search(known, importance="fisher").for_sparsity(0.6).msb_sparsity >= 0.6


def test_texts_that_cannot_be_used(tiny, tmp_path, capsys):
    model = tiny.folder / "tiny.gguf"
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(TextError, match="empty"):
        sparqle_tvm.calibrate(tiny.imported, tmp_path / "empty.txt", 10, progress=False)
    with pytest.raises(InvalidArgumentError, match="importance 'luck'"):
        sparqle_tvm.calibrate(tiny.imported, importance="luck", progress=False)
    floating = replace(tiny.imported, activations="float32")
    with pytest.raises(InvalidArgumentError, match="needs a model with int8"):
        sparqle_tvm.calibrate(floating, progress=False)
    for arguments, message in (
        (["pareto", "--calibration", str(tmp_path / "no.npz")], "cannot be read"),
        (["calibrate", "--out", str(tmp_path / "c.txt")], "has to end in .npz"),
        (
            ["pareto", "--calibration", "x.npz", "--max-perplexity-increase", "much"],
            "neither a share",
        ),
    ):
        assert main([*arguments, "--model", str(model)]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
