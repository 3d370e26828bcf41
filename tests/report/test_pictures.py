"""The pictures show the figures they were given."""

import numpy as np
import pytest
from report_helper import small_run

from sparqle_tvm.report.pictures.layers import cycles_by_group, draw_cycles, draw_sparsity
from sparqle_tvm.report.pictures.roofline import draw_roofline, passes_per_mac, points_of
from sparqle_tvm.report.pictures.style import CSS_NAMES, round_ticks, to_svg


@pytest.mark.parametrize("narrow", [False, True])
def test_bars_are_as_high_as_the_cycles(narrow):
    run = small_run()
    figure = draw_cycles(run.passes, narrow=narrow)
    for axes, phase in zip(figure.axes, run.passes, strict=True):
        drawn = sum(bar.get_height() for bar in axes.patches)
        cycles = sum(layer.costs["sparqle"].total_cycles for layer in phase.layers)
        assert drawn == pytest.approx(cycles / 1e6)
        (lines,) = axes.collections
        dense = [segment[0][1] for segment in lines.get_segments()]
        assert sum(dense) == pytest.approx(
            sum(layer.costs["dense"].total_cycles for layer in phase.layers) / 1e6
        )
        assert axes.get_ylabel() == "million cycles"


def test_cycles_by_group():
    layers = small_run().prefill.layers
    columns, groups = cycles_by_group(layers, "dense")
    assert columns == ["0", "1"]
    assert list(groups) == ["q, k, v", "gate, up"]
    attention = [x for x in layers if x.block == 0 and x.type.startswith("attn")]
    assert groups["q, k, v"][0] == sum(x.costs["dense"].total_cycles for x in attention)


def test_map_of_sparsity():
    run = small_run()
    mesh = draw_sparsity(run.prefill).axes[0].collections[0]
    values = np.asarray(mesh.get_array()).reshape(2, 2)
    found = {(x.type, x.block): x.msb_sparsity for x in run.prefill.layers}
    assert values[1, 0] == found["ffn_up", 0]
    assert values[0, 1] == found["attn_q", 1]


def test_points_lie_under_the_roofs():
    run = small_run()
    for phase in run.passes:
        assert passes_per_mac(phase, run.accelerator) == 2
        for scheme, passes in (("dense", 2), ("sparqle", 1)):
            roof = run.accelerator.peak_macs_per_second / passes
            for point in points_of(phase, scheme, run.accelerator):
                memory = point.macs_per_byte * run.accelerator.dram_bytes_per_second
                assert point.macs_per_second <= min(roof, memory)
    point, layer = points_of(run.prefill, "dense", run.accelerator)[0], run.prefill.layers[0]
    assert point.macs_per_byte == layer.macs / layer.costs["dense"].dram_bytes
    nanoseconds = layer.costs["dense"].total_cycles  # at 1 GHz
    assert point.macs_per_second == pytest.approx(layer.macs / nanoseconds * 1e9)


def test_roofline_shows_every_layer():
    run = small_run()
    figure = draw_roofline(run.passes, run.accelerator)
    for axes, phase in zip(figure.axes, run.passes, strict=True):
        drawn = [line for line in axes.lines if line.get_label() in ("dense", "split")]
        assert [len(line.get_xdata()) for line in drawn] == [len(phase.layers)] * 2
        low, high = axes.get_xlim()
        for line in drawn:
            assert low < min(line.get_xdata()) <= max(line.get_xdata()) < high


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 1000, [1, 10, 100, 1000]), (0.9, 12, [1, 2, 5, 10]), (16, 41, [20, 25, 30, 40])],
)
def test_round_ticks(low, high, ticks):
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_svg_has_variables_and_names_of_its_own():
    figure = draw_sparsity(small_run().prefill)
    text = to_svg(figure, "map", 'a "map" of <digits>')
    assert text.startswith('<svg role="img" aria-label="a &quot;map&quot; of &lt;digits&gt;"')
    assert "<metadata" not in text
    assert "<style" not in text
    assert 'id="map-' in text
    assert "var(--ink)" in text
    assert not any(color in text.lower() for color in CSS_NAMES)
    again = to_svg(draw_sparsity(small_run().prefill), "map", 'a "map" of <digits>')
    assert again == text
