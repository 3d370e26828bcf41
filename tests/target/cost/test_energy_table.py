"""Every constant is that of its citation; what lies between cited sizes is interpolated."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.target.accelerator import PRESETS
from sparqle_tvm.target.cost.energy_table import (
    Band,
    default_table,
    energy_table,
    memories,
    nodes,
)

# Copied from the papers by hand, pJ.
HOROWITZ_2014 = {
    "int8_add": 0.03,
    "int32_add": 0.1,
    "int8_multiply": 0.2,
    "int32_multiply": 3.1,
    "fp16_add": 0.4,
    "fp32_add": 0.9,
    "fp16_multiply": 1.1,
    "fp32_multiply": 3.7,
}
JOUPPI_2021 = {
    "int8_add": 0.007,
    "int32_add": 0.03,
    "int8_multiply": 0.07,
    "int32_multiply": 1.48,
    "fp16_add": 0.16,
    "fp32_add": 0.38,
    "fp16_multiply": 0.34,
    "fp32_multiply": 1.31,
}
KIB = 1024
# pJ per 64 bits.
SRAM = {
    "45nm": {8 * KIB: 10.0, 32 * KIB: 20.0, 1024 * KIB: 100.0},
    "7nm": {8 * KIB: 7.5, 32 * KIB: 8.5, 1024 * KIB: 14.0},
}
# (low, mid, high) in pJ, for how many bits, year, a word of the source.
DRAM = {
    "lpddr4": ((8.0, 8.0, 8.0), 1, 2019, "Accelergy"),
    "ddr4": ((1300.0, 1300.0, 1300.0), 64, 2021, "Jouppi"),
    "hbm2": ((250.0, 350.0, 450.0), 64, 2021, "Jouppi"),
    "lpddr5": ((4.0, 6.4, 8.0), 1, 2020, "estimate"),
}


@pytest.mark.parametrize(
    ("node", "cited", "author", "year"),
    [("45nm", HOROWITZ_2014, "Horowitz", 2014), ("7nm", JOUPPI_2021, "Jouppi", 2021)],
)
def test_operations_and_sram_are_cited(node, cited, author, year):
    table = energy_table(node)
    assert {name: constant.value for name, constant in table.operations.items()} == cited
    assert {size: constant.value for size, constant in table.sram.items()} == SRAM[node]
    for constant in (*table.operations.values(), *table.sram.values()):
        assert author in constant.source
        assert constant.year == year
        assert constant.unit.startswith("pJ")
    for size, value in SRAM[node].items():
        assert table.sram_pj_per_byte(size) == pytest.approx(value / 8)


@pytest.mark.parametrize("memory", DRAM)
def test_dram_is_cited(memory):
    table = energy_table(memory=memory)
    values, bits, year, word = DRAM[memory]
    expected = Band(*(value * 8 / bits for value in values))
    assert dataclasses.astuple(table.dram_pj_per_byte) == pytest.approx(
        dataclasses.astuple(expected)
    )
    assert table.dram.year == year
    assert word in table.dram.source
    assert table.estimate == (memory == "lpddr5")
    assert ("estimate" in table.name) == table.estimate


def test_nothing_else_is_there():
    assert set(nodes()) == set(SRAM)
    assert set(memories()) == set(DRAM)


def test_parameters_say_their_range_and_why():
    parameters = energy_table().parameters
    assert len(parameters) == 8
    for parameter in parameters.values():
        # The exponent is largest where energy is lowest.
        ordered = sorted((parameter.low, parameter.mid, parameter.high))
        assert ordered[1] == parameter.mid
        assert parameter.low != parameter.high
        assert len(parameter.why) > 20
        assert parameter.unit


@pytest.mark.parametrize("node", SRAM)
def test_sram_between_and_beyond_cited_sizes(node):
    table = energy_table(node)
    sizes = [4 * KIB << i for i in range(13)]  # 4 KiB to 16 MiB
    costs = [table.sram_pj_per_byte(size) for size in sizes]
    assert costs == sorted(costs)
    # A straight line in both logarithms: the same factor from octave to octave.
    factors = [b / a for a, b in itertools.pairwise(costs)]
    assert factors[:3] == pytest.approx([factors[0]] * 3)  # 4 to 32 KiB
    assert factors[3:] == pytest.approx([factors[3]] * len(factors[3:]))
    low, high = SRAM[node][32 * KIB] / 8, SRAM[node][1024 * KIB] / 8
    assert factors[3] == pytest.approx((high / low) ** (1 / 5))


def test_adders_are_a_line_through_the_cited_widths():
    table = energy_table("45nm")
    assert table.add_pj(8) == pytest.approx(0.03)
    assert table.add_pj(20) == pytest.approx(0.065)
    assert table.add_pj(32) == pytest.approx(0.1)


def test_presets_come_with_their_memory():
    named = {name: default_table(accelerator).name for name, accelerator in PRESETS.items()}
    assert named == {
        "sparqle/edge": "7nm + LPDDR4",
        "sparqle/mobile": "7nm + LPDDR5 (estimate)",
        "sparqle/server": "7nm + HBM2",
    }
    own = dataclasses.replace(PRESETS["sparqle/server"], name="mine")
    assert default_table(own, "45nm").name == "45nm + LPDDR4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"node": "3nm"}, "unknown node '3nm'; known: 45nm, 7nm"),
        ({"memory": "sram"}, "unknown memory 'sram'; known: ddr4, hbm2, lpddr4, lpddr5"),
    ],
)
def test_unknown_tables_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        energy_table(**arguments)


def test_json_has_every_source():
    data = energy_table("45nm", "hbm2").to_json()
    assert data["name"] == "45nm + HBM2"
    assert data["operations"]["fp32_add"]["source"].startswith("M. Horowitz")
    assert data["dram"]["high"] == 450.0
    assert data["sram"]["8192"]["year"] == 2014
