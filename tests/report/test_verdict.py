"""The sentences above a report, and several reports as one."""

from __future__ import annotations

import json

import pytest

from sparqle_tvm.cli import main
from sparqle_tvm.models.sparsity import measured
from sparqle_tvm.report.document import Card, Column, Document, Picture, Section, Table
from sparqle_tvm.report.several import together
from sparqle_tvm.report.verdict import estimate_verdicts, verdicts
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.studies.estimate import estimate, estimate_around
from sparqle_tvm.studies.target import decode_rows
from sparqle_tvm.target.accelerator import PRESETS

EDGE = PRESETS["sparqle/edge"]


def of_edge(phase, seq, batch=1, **more):
    return estimate("smollm2-135m", phase, seq=seq, batch=batch, target=EDGE, **more)


def test_a_prefill_gains_where_the_array_works_less():
    one = of_edge("prefill", 256)
    (sentence,) = verdicts([one])
    saved = one.saved("sparqle")
    assert sentence.startswith("Prefill, 256 tokens: split precision saves ")
    assert f"{saved.cycles:.1%} of the time".replace("%", " %") in sentence
    same = f"({one.same_tiles['whole_model']:.1%} with the same tiles)".replace("%", " %")
    assert (same in sentence) == (abs(one.same_tiles["whole_model"] - saved.energy.mid) >= 0.01)
    dense, split = (one.schemes[s].whole_model for s in ("dense", "sparqle"))
    array = [c.limits["array"] + c.limits["waiting_rows"] for c in (dense, split)]
    shares = " to ".join(f"{cycles / dense.cycles:.1%}".replace("%", " %") for cycles in array)
    because = f"because the wait for the array falls from {shares} of the baseline's time"
    assert because in sentence


def test_a_decode_says_from_how_many_sequences_on_it_gains():
    sentence, *_, area = estimate_verdicts([of_edge("decode", 64)])
    assert "next to nothing" in sentence
    assert "of the time goes to loading weights, which does not change" in sentence
    # int4 with a scale and a minimum for each 32: 5 bits, so 80 rows balance at 16 bytes a cycle.
    assert "its dense layers gain from about 81 sequences on" in sentence
    assert area.startswith("Time x area of array and buffers: split precision ")
    sentence, *_ = estimate_verdicts([of_edge("decode", 64, msb_sparsity=0.0)])
    assert "its dense layers gain" not in sentence


def test_values_that_are_not_loaded_are_no_gain_of_planes():
    one = estimate("llama3-8b", "decode", seq=8192, batch=16, target=EDGE, same_tiles=False)
    (sentence,) = verdicts([one])
    dense, split = (one.schemes[s].whole_model for s in ("dense", "sparqle"))
    cache = [part.limits["kv_cache"] / dense.cycles for part in (dense, split)]
    shares = " to ".join(f"{share:.1%}".replace("%", " %") for share in cache)
    assert f"the wait for loading keys and values falls from {shares} of" in sentence
    assert "values whose probability is 0 are not loaded, which needs no planes" in sentence


def test_the_whole_model_gains_before_its_dense_layers_do():
    machine = EDGE.changed({"rows": 32, "cols": 32, "lanes": 8, "dram_bytes_per_cycle": 25.6})

    def of(batch, **more):
        question = {"seq": 256, "batch": batch, "target": machine, "same_tiles": False, **more}
        return estimate("llama2-7b", "decode", **question)

    sentence, *_ = estimate_verdicts([of(1)])
    assert sentence.endswith(", the whole model gains 1 % from about 3 on, by attention.")
    before, there = (of(batch, schemes=("dense", "sparqle")) for batch in (2, 3))
    assert before.saved("sparqle").cycles < 0.01 <= there.saved("sparqle").cycles


def test_wider_multipliers_are_named_where_they_save_more_energy():
    one = of_edge("prefill", 256)
    named = [s for s in estimate_verdicts([one]) if s.startswith("Native (wider multipliers")]
    native, split = (one.saved(scheme).energy.mid for scheme in ("native", "sparqle"))
    shown = f"saves more energy: {native:.1%} in prefill.".replace("%", " %")
    assert [shown in sentence for sentence in named] == [True] * (native - split >= 0.01)


def test_what_other_digits_would_save_stands_beside_the_answer():
    question = {"seq": 256, "target": EDGE}
    one = estimate_around("smollm2-135m", "prefill", **question)
    sparse, dense = one.other_sparsities[::-1]
    assert dense.msb_sparsity < one.msb_sparsity < sparse.msb_sparsity
    assert dense.time_saved < one.saved("sparqle").cycles < sparse.time_saved
    *_, sentence = estimate_verdicts([one])
    begin = f"MSB sparsity is assumed: {one.msb_sparsity:.1%} by MACs"
    assert sentence.startswith(begin.replace("%", " %"))
    shown = f"at {dense.msb_sparsity:.1%}, prefill saves {dense.time_saved:.1%} of the time"
    assert shown.replace("%", " %") in sentence
    # By hand: all rows with a tenth more digits.
    given = {kind: s - 0.1 for kind, s in one.digits.layer_types.items()}
    found = measured(4).shifted(-0.1)
    assert {kind: found.msb_sparsity(kind) for kind in given} == pytest.approx(given, abs=0.005)
    again = Estimate.from_json(json.loads(json.dumps(one.to_json())))
    assert again.other_sparsities == one.other_sparsities


def test_without_a_split_form_there_is_no_verdict():
    assert list(estimate_verdicts([of_edge("prefill", 64, schemes=("native",))])) == []


@pytest.mark.parametrize(
    "changes", [{}, {"rows": 32, "cols": 32, "lanes": 8, "dram_bytes_per_cycle": 25.6}]
)
def test_dense_layers_gain_from_the_rows_that_a_check_names(changes):
    machine = EDGE.changed(changes)
    rows = decode_rows(machine)
    assert rows == 65  # 64, and 80, are two or four whole groups of PE rows
    found = [
        estimate(
            *("llama2-7b", "decode"),
            **{"seq": 16, "batch": batch, "target": machine, "same_tiles": False},
            schemes=("dense", "sparqle"),
        ).saved("sparqle", "dense_layers")
        for batch in (rows - 1, rows)
    ]
    assert found[0].cycles < 0.01 < 0.05 < found[1].cycles


@pytest.mark.parametrize(
    ("shares", "bandwidth", "rows"),
    [(True, 128, 9), (True, 150, 6), (False, 128, 1), (True, 1024, 2)],
)
def test_fewer_rows_than_the_array_has_share_it(shares, bandwidth, rows):
    # 4096 products a cycle balance with 8 rows at 128 bytes, 6.8 at 150, 1 at 1024. Six to eight
    # rows get two of 16 PE rows each, and take as long as 8; five get three, nine one.
    machine = EDGE.changed({"rows_share_k": shares, "dram_bytes_per_cycle": float(bandwidth)})
    assert decode_rows(machine) == rows


def chapter(title, number):
    table = Table("t", f"table {number}", (Column("a", "a"),), ({"a": number},))
    constants = Table("c", "constants", (Column("a", "a"),), ({"a": 0},))
    picture = Picture("p", "", lambda narrow: None)
    sections = (Section("One", (table, picture)), Section("Two", (constants,)))
    return Document(title, "sub", (Card("l", "v", "n"),), sections, (f"verdict {number}.",))


def test_several_documents_are_chapters_of_one():
    found = together([chapter("M: prefill", 1), chapter("M: decode", 2)])
    assert found.title == "M: what split precision saves"
    assert found.verdict == ("1. verdict 1.", "2. verdict 2.")
    assert len(found.cards) == 2
    heads = [(section.level, section.title) for section in found.sections]
    assert heads == [(1, "1. Prefill"), (2, "One"), (2, "Two"), (1, "2. Decode"), (2, "One")]
    assert [table.name for table in found.tables] == ["1_t", "1_c", "2_t"]
    assert [picture.name for picture in found.pictures] == ["1-p", "2-p"]


def test_a_report_of_several_files_is_one_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--model", "smollm2-135m", "--seq", "64"]
    for phase in ("prefill", "decode"):
        assert main(["estimate", *small, "--phase", phase, "--json", f"{phase}.json"]) == 0
    over = ["--find", "time_saved=0", "--over", "batch=1,2"]
    fixed = ["--model", "smollm2-135m", "--phase", "decode", "--seq", "16"]
    assert main(["sweep", *fixed, *over, "--json", "find.json"]) == 0
    capsys.readouterr()
    files = ["prefill.json", "decode.json", "find.json"]
    assert main(["report", *files, "--html", "all.html", "--csv", "tables", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["of"] == ["estimate", "estimate", "crossings"]
    page = (tmp_path / "all.html").read_text()
    assert page.count('class="verdict"') == 1
    assert page.count("<li>") == len(data["verdict"]) == 9
    anchors = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(set(anchors)) == len(anchors)
    assert (tmp_path / "tables" / "3_crossings.csv").exists()
    assert main(["report", *files, "--html", "decode.json"]) == 2
    assert "decode.json: this file is read by results, too" in capsys.readouterr().err
