"""What `sparqle run` prints: narrow enough, and with the figures of the result."""

import io

import pytest
from rich.console import Console
from run_result_helper import run_result

from sparqle_tvm.report import formats
from sparqle_tvm.report.run import perplexity_section, run_document
from sparqle_tvm.report.writers import MAX_WIDTH_COLUMNS, print_document
from sparqle_tvm.results.run import BeforeAfter, ModelFile, PhaseGain, TuningGain


def lines(result, width: int = MAX_WIDTH_COLUMNS) -> list[str]:
    stream = io.StringIO()
    print_document(run_document(result), Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def printed(result) -> str:
    """All words, one space apart."""
    return " ".join(" ".join(lines(result)).split())


@pytest.mark.parametrize("width", [80, 100, 200])
def test_width(width):
    assert max(map(len, lines(run_result(), width))) <= min(width, MAX_WIDTH_COLUMNS)


def test_figures_and_units():
    result = run_result()
    text = printed(result)
    for one, name in ((result.prefill, "dense_layers"), (result.decode, "whole_model")):
        for scheme in one.schemes.values():
            part = scheme.part(name)
            assert f"{part.cycles:,}" in text
            assert formats.nbytes(part.dram_bytes) in text
            assert formats.joules(part.energy.joules.mid) in text
        saved = one.saved("sparqle", name)
        for share in (saved.cycles, saved.dram_bytes, saved.energy.mid):
            assert formats.percent(share) in text
    for expected in (
        "20.5000 +2.50 %",
        "bit for bit",
        "prefill, 24 tokens",
        "decode, 1 token after 23",
        "best blk_0_attn_q",
        "worst blk_1_ffn_up",
        "Windows: which values have no high digit",
        "centred on the zero point 0",
        "attn_q attn_k",
        "16x16 PEs of 16 4-bit lanes at 1 GHz",
        " µs",
        "Energy by the table 7nm + LPDDR4.",
    ):
        assert expected in text


def test_what_is_wrong_is_said():
    result = run_result(
        exact=False,
        uncounted=("a", "b", "c", "d", "e", "f"),
        model=ModelFile("a name " * 30, "0" * 64),
    )
    text = printed(result)
    assert "NOT exact" in text
    assert "not integers: a, b, c, d and 2 more" in text
    assert max(map(len, lines(result))) <= MAX_WIDTH_COLUMNS


def test_what_tuning_gained_is_said():
    gain = PhaseGain(BeforeAfter(1000, 900), BeforeAfter(10, 10))
    text = printed(run_result(tuning=TuningGain("folder", gain, gain)))
    assert "Schedules from folder" in text
    assert "prefill 1,000 -> 900 cycles (\N{MINUS SIGN}10.0 %); decode 1,000 -> 900" in text


def test_attention_in_int8_says_what_it_costs_alone():
    perplexity = {"float": 20.0, "int8_attention": 20.1, "int8": 20.5, "sparqle": 20.5}
    (table,) = perplexity_section(run_result(perplexity=perplexity, kv="planes:2")).parts
    assert "stored as planes:2; that alone makes of float 20.1000, +0.50 %." in table.note
    (table,) = perplexity_section(run_result()).parts
    assert table.note == ""
