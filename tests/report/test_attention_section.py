"""The section about attention says what the passes have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_helper import small_run
from run_result_helper import SHAPE

from sparqle_tvm.report.attention import attention_sections
from sparqle_tvm.report.document import Picture, Section, Table
from sparqle_tvm.report.pictures.layers import draw_live_keys


def section(**change: object) -> Section:
    (found,) = attention_sections(replace(small_run(), **change))
    return found


def tables(found: Section) -> dict[str, Table]:
    return {part.name: part for part in found.parts if isinstance(part, Table)}


def test_by_formula_layers_are_not_told_apart():
    found = section()
    assert "Live keys as measured on SmolLM2" in found.parts[0]
    assert set(tables(found)) == {"live_keys", "cache"}


def test_a_run_of_programs_says_every_layer():
    found, run = section(engine="simulator"), small_run()
    assert "as the programs met them" in found.parts[0]
    assert any(isinstance(part, Picture) for part in found.parts)
    shares, layers = tables(found)["live_keys"], tables(found)["attention_layers"]
    for one, row in zip(run.passes, shares.rows, strict=True):
        live = [other.cache.live_keys for other in one.others if other.cache is not None]
        assert [each[f"{one.phase}_live"] for each in layers.rows] == live
        assert row["mean"] == pytest.approx(sum(live) / SHAPE.layers)
        assert (row["keys"], row["layers"]) == (24, SHAPE.layers)
    for other, row in zip(run.decode.others[4:], layers.rows, strict=False):
        cache = other.cache
        assert (row["key_planes"], row["value_planes"]) == (cache.key_planes, cache.value_planes)
        assert row["key_bits"] == pytest.approx(8 * cache.key_bytes / (cache.elements / 2))


def test_bytes_of_the_cache():
    table = tables(section())["cache"]
    assert [row["context"] for row in table.rows] == [24, 512, 2048, 8192, 32768]
    # Keys and values of two layers of 2 heads of 16 channels, and a float32 scale for each head.
    token = SHAPE.layers * 2 * (SHAPE.kv_heads * SHAPE.head_dim + 4 * SHAPE.kv_heads)
    for row in table.rows:
        assert row["int8_bytes"] == row["context"] * token
        assert row["saved"] == pytest.approx(1 - row["stored_bytes"] / row["int8_bytes"], abs=1e-3)


def test_without_attention_on_the_array_there_is_none():
    run = small_run()
    bare = replace(
        run,
        prefill=replace(
            run.prefill, others=tuple(o for o in run.prefill.others if o.cache is None)
        ),
    )
    assert not list(attention_sections(bare))


@pytest.mark.parametrize("narrow", [False, True])
def test_lines_are_the_shares(narrow):
    run = small_run()
    (axes,) = draw_live_keys(run.passes, narrow=narrow).axes
    for one, line in zip(run.passes, axes.get_lines(), strict=True):
        live = [other.cache.live_keys for other in one.others if other.cache is not None]
        assert line.get_ydata().tolist() == live
