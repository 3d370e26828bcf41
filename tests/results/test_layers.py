"""The rows of a pass: one per dense layer, which add up to its totals."""

import pytest
from run_result_helper import encodings, phase

from sparqle_tvm.results.layers import block_of, layer_rows, layer_type, other_rows


def test_labels():
    assert (layer_type("blk_12_ffn_up"), block_of("blk_12_ffn_up")) == ("ffn_up", 12)
    assert (layer_type("output"), block_of("output")) == ("output", None)


@pytest.mark.parametrize(("tokens", "past"), [(24, 0), (1, 23)])
def test_rows_add_up_to_the_totals(tokens, past):
    counted = phase(tokens, past)
    passes = {"dense": counted.dense, "sparqle": counted.sparqle}
    rows = layer_rows(counted.encodings, passes)
    assert [row["label"] for row in rows] == [
        shape.label for e in encodings(tokens) for shape in e.consumers
    ]
    for scheme, cost in passes.items():
        others = other_rows(cost)
        cycles = sum(row[scheme]["total_cycles"] for row in rows)
        assert cycles + sum(o["total_cycles"] for o in others) == cost.whole_model.cycles
        encode = sum(o["dram_bytes"] for o in others if o["part"] == "encode")
        nbytes = sum(row[scheme]["dram_bytes"] for row in rows) + encode
        assert nbytes == cost.dense_layers.dram_bytes


def test_a_row_describes_its_layer():
    counted = phase(24, 0)
    row = layer_rows(counted.encodings, {"sparqle": counted.sparqle})[-1]
    assert (row["type"], row["block"], row["m"], row["n"], row["k"]) == ("ffn_up", 1, 24, 96, 64)
    assert row["macs"] == 24 * 96 * 64
    assert row["msb_sparsity"] == counted.encodings[-1].nnz.msb_sparsity
    assert row["sparqle"]["bound"] in ("compute", "memory")
