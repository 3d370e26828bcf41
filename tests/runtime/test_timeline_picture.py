"""The timeline picture: spans without gaps, shares that add up, short and long runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.runtime import timeline_picture as timeline
from sparqle_tvm.runtime.timeline_picture import Span, draw_timeline, shares_of, spans_of
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.compile.codegen import generate
from sparqle_tvm.target.compile.schedule import default_schedule
from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.header import Engine
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.target.simulator import simulate_timing

# Little memory, so that the op has many tiles.
SMALL = replace(
    PRESETS["sparqle/edge"],
    activation_buffer_bytes=8192,
    scratchpad=False,
    weight_buffer_bytes=4096,
    accumulator_buffer_bytes=8192,
)
ROWS, K = 48, 96


@pytest.fixture(scope="module")
def result():
    spec = DenseOp(m=ROWS, n=80, k=K, label="up")
    program = generate(default_schedule(spec, SMALL), spec, SMALL)
    pbm = np.random.default_rng(0).integers(0, 256, (ROWS, K // 8)).astype(np.uint8)
    return simulate_timing(program, ROWS, RowNnz.from_pbm(pbm, K))


@pytest.mark.parametrize("engine", Engine)
def test_spans_fill_the_run_and_sum_up_to_the_counts(result, engine):
    spans = spans_of(result, engine, 0, result.total_cycles)
    assert (spans[0].start, spans[-1].end) == (0, result.total_cycles)
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    found: dict[str, int] = {}
    for span in spans:
        found[span.name] = found.get(span.name, 0) + span.end - span.start
    time = result.engines[engine]
    assert found == dict(time.busy_cycles) | dict(time.stalled_cycles)


@pytest.mark.parametrize("engine", Engine)
def test_spans_of_a_part_are_cut_at_its_ends(result, engine):
    begin, end = result.total_cycles // 3, result.total_cycles // 2
    spans = spans_of(result, engine, begin, end)
    assert (spans[0].start, spans[-1].end) == (begin, end)
    assert sum(span.end - span.start for span in spans) == end - begin


def test_shares():
    spans = [Span("weights", "LD.WGT", 0, 3), Span("stall", "DRAM", 3, 5)]
    spans += [Span("weights", "LD.WGT", 5, 6), Span("activations", "LD.LSB", 6, 8)]
    shares = shares_of(spans, np.array([0.0, 4.0, 8.0]))
    # Cycles 0 to 4: weights 3, stall 1. Cycles 4 to 8: stall 1, weights 1, activations 2.
    np.testing.assert_allclose(shares["weights"], [0.75, 0.25])
    np.testing.assert_allclose(shares["stall"], [0.25, 0.25])
    np.testing.assert_allclose(shares["activations"], [0.0, 0.5])


def test_colors_differ():
    colors = [to_hex(color) for color in timeline._COLORS.values()]
    assert len(set(colors)) == len(colors)
    roles = {cls.ROLE for cls in INSTRUCTIONS.values()} - {""}
    assert roles == set(timeline._COLORS)


@pytest.mark.parametrize("max_spans", [400, 5], ids=["spans", "shares"])
def test_picture(result, monkeypatch, tmp_path, max_spans):
    monkeypatch.setattr(timeline, "_MAX_SPANS", max_spans)
    figure = draw_timeline(result, title="up")
    (axes,) = figure.axes
    assert axes.get_title() == f"up - {result.total_cycles:,} cycles"
    names = [label.get_text().split("\n")[0] for label in axes.get_yticklabels()]
    assert names == [engine.name for engine in Engine]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"weights", "LSB pass", "MSB pass", "drain", "store"} <= legend
    figure.savefig(tmp_path / "up.png")


@pytest.mark.parametrize("cycles", [(-1, 5), (5, 5), (0, 10**9)])
def test_part_that_is_none(result, cycles):
    with pytest.raises(InvalidArgumentError, match="are no part of a run of"):
        draw_timeline(result, cycles=cycles)
