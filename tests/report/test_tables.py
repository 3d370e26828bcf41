"""The tables: narrow enough, and with the figures of the result."""

import dataclasses
import io

import pytest
from rich.console import Console
from run_result_helper import run_result

from sparqle_tvm.report.tables import MAX_WIDTH_COLUMNS, print_run
from sparqle_tvm.target.cost.energy import energy


def printed(result, width: int = MAX_WIDTH_COLUMNS) -> str:
    stream = io.StringIO()
    print_run(result, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [100, 200])
def test_width(width):
    assert max(map(len, printed(run_result(), width).splitlines())) <= MAX_WIDTH_COLUMNS


def test_figures_and_units():
    result = run_result()
    text = printed(result)
    for part in (result.prefill.dense_layers, result.decode.whole_model):
        assert f"{part.dense.cycles:,}" in text
        assert f"{part.sparqle.cycles:,}" in text
        assert f"{part.cycles_reduction:.1%}" in text
        assert f"{part.dense.dram_bytes / 1e6:,.2f} MB" in text
        joules = energy(part.dense.events, result.accelerator, result.table).joules
        assert f"{joules.mid * 1e3:,.3f} mJ" in text
    for expected in (
        "20.5000 (+2.50%)",
        "bit for bit",
        "prefill, 24 tokens",
        "decode, 1 token after 23",
        "best blk_0_attn_q",
        "worst blk_1_ffn_up",
        "attn_q attn_k",
        "16x16 PEs of 16 4-bit lanes at 1 GHz",
        " ms",
        "Energy by the table 7nm + LPDDR4.",
    ):
        assert expected in text


def test_what_is_wrong_is_said():
    result = run_result(
        exact=False, uncounted=("a", "b", "c", "d", "e", "f"), model_name="a name " * 30
    )
    saturated = (dataclasses.replace(result.layers[0], saturated=7), *result.layers[1:])
    text = printed(dataclasses.replace(result, layers=saturated))
    assert "NO" in text
    assert "not integers: a, b, c, d and 2 more" in text
    assert "7 activations were saturated" in text
    assert max(map(len, text.splitlines())) <= MAX_WIDTH_COLUMNS
