"""A pass as data: its layers and other work add up to its parts."""

import numpy as np
import pytest
from run_result_helper import EDGE, SHAPE, encodings, passes

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.results.passes import PARTS, block_of, layer_type, share_saved
from sparqle_tvm.studies.count import count_phases
from sparqle_tvm.target.cost.energy import energy, reduction
from sparqle_tvm.target.cost.energy_table import default_table
from sparqle_tvm.target.cost.limits import LIMITS
from sparqle_tvm.target.cost.model import pass_cost


def test_labels():
    assert (layer_type("blk_12_ffn_up"), block_of("blk_12_ffn_up")) == ("ffn_up", 12)
    assert (layer_type("output"), block_of("output")) == ("output", None)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("engine", ["analytical", "simulator"])
def test_layers_and_others_add_up_to_the_parts(which, engine):
    counted = count_phases(encodings(24), SHAPE, EDGE, engine)[which]
    tokens = (24, 1)[which]
    assert [layer.label for layer in counted.layers] == [
        shape.label for e in encodings(tokens) for shape in e.consumers
    ]
    for scheme, cost in counted.schemes.items():
        layers = [layer.costs[scheme] for layer in counted.layers]
        encodes = [x.costs[scheme] for x in counted.others if x.part == "encode"]
        vector = [x.costs[scheme] for x in counted.others if x.part == "vector"]
        for part, works in (
            (cost.dense_layers, [*layers, *encodes]),
            (cost.whole_model, [*layers, *encodes, *vector]),
        ):
            assert part.cycles == sum(work.total_cycles for work in works)
            assert part.dram_bytes == sum(work.dram_bytes for work in works)
            assert part.seconds == EDGE.seconds(part.cycles)
            for limit in LIMITS:
                assert part.limits[limit] == sum(work.limits[limit] for work in works)
                assert part.share(limit) == pytest.approx(part.limits[limit] / part.cycles)
            assert sum(part.limits.values()) == part.cycles
            components = [band.mid for band in part.energy.components.values()]
            assert part.energy.joules.mid == pytest.approx(sum(components))
        assert cost.mma_cycles == sum(work.mma_cycles for work in layers)
        assert all(work.weight_bytes <= work.dram_bytes for work in layers)
        assert all(work.weight_bytes > 0 for work in layers)


def test_a_pass_is_what_the_cost_model_counts():
    both = count_phases(encodings(24), SHAPE, EDGE, balance="none")
    for counted, tokens, past in zip(both, (24, 1), (0, 23), strict=True):
        found = {
            scheme: pass_cost(
                [e if tokens > 1 else e.last_token() for e in encodings(24)],
                SHAPE,
                tokens=tokens,
                past=past,
                accelerator=EDGE,
                scheme=scheme,
                balance="none",
            )
            for scheme in ("dense", "sparqle")
        }
        for part in PARTS:
            totals = {scheme: getattr(cost, part) for scheme, cost in found.items()}
            spent = {s: energy(t.events, EDGE, default_table(EDGE)) for s, t in totals.items()}
            for scheme, cost in counted.schemes.items():
                mine = cost.part(part)
                assert mine.events == totals[scheme].events
                assert mine.limits == totals[scheme].limits
                assert mine.energy.joules == spent[scheme].joules
            saved = counted.saved("sparqle", part)
            assert saved.energy == reduction(spent["dense"], spent["sparqle"])
            assert saved.cycles == 1 - totals["sparqle"].cycles / totals["dense"].cycles
            assert saved.dram_bytes == 1 - totals["sparqle"].dram_bytes / totals["dense"].dram_bytes
            assert counted.saved("dense", part).cycles == 0


def test_a_layer_is_described():
    counted, _ = passes()
    layer = counted.layers[-1]
    assert (layer.type, layer.block, layer.m, layer.n, layer.k) == ("ffn_up", 1, 24, 96, 64)
    assert (layer.macs, layer.times) == (24 * 96 * 64, 1)
    assert layer.msb_sparsity == encodings(24)[-1].nnz.msb_sparsity
    for cost in layer.costs.values():
        assert cost.limits[cost.limit] == max(cost.limits.values())
    shares = [e.nnz.msb_sparsity for e in encodings(24)]
    weights = [e.macs for e in encodings(24)]
    assert counted.msb_sparsity == pytest.approx(np.average(shares, weights=weights))
    assert [one.name for one in passes()] == ["prefill, 24 tokens", "decode, 1 token after 23"]


def test_what_was_not_counted_is_not_compared():
    counted, _ = passes()
    with pytest.raises(InvalidArgumentError, match=r"schemes dense, sparqle .* not a4"):
        counted.saved("a4")
    with pytest.raises(InvalidArgumentError, match="not attention"):
        counted.saved("sparqle", "attention")


def test_share_saved():
    assert share_saved(100, 80) == pytest.approx(0.2)
    assert share_saved(100, 110) == pytest.approx(-0.1)
    assert share_saved(0, 0) == 0
