"""Every constant says where it is from; what lies between cited sizes is interpolated."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import plain
from sparqle_tvm.target.accelerator import MEMORIES, PRESETS
from sparqle_tvm.target.cost.energy_table import (
    EnergyTable,
    default_table,
    energy_table,
    memories,
    nodes,
    read_data,
)

KIB = 1024
SIZES = (8 * KIB, 32 * KIB, 1024 * KIB)
OPERATIONS = {
    "int8_add",
    "int32_add",
    "int8_multiply",
    "int32_multiply",
    "fp32_add",
    "fp16_multiply",
    "fp32_multiply",
}
# Nobody could compare these with a copy of their source yet: nothing may pretend otherwise.
UNCHECKED = {"7nm": {f"on-chip memory, {size // KIB} KiB" for size in SIZES}, "45nm": set()}


def tables() -> list[EnergyTable]:
    return [energy_table(node, memory) for node in nodes() for memory in memories()]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_every_constant_has_its_unit_source_and_check(table):
    assert set(table.operations) == OPERATIONS
    assert tuple(table.sram) == SIZES
    assert len(table.constants) == len(OPERATIONS) + len(SIZES) + 1
    for name, constant in table.constants.items():
        assert constant.unit in ("pJ", "pJ per bit", "pJ per 64 bits")
        assert (constant.unit == "pJ") == (name.replace(" ", "_") in OPERATIONS)
        assert len(constant.source) > 20
        assert 2010 <= constant.year <= 2030
        assert constant.band.low <= constant.band.mid <= constant.band.high
        assert constant.band.low > 0
        assert len(constant.checked) > 10 or not constant.checked
    assert table.estimate == table.dram.source.startswith("estimate") == ("estimate" in table.name)


@pytest.mark.parametrize("node", nodes())
@pytest.mark.parametrize("memory", memories())
def test_unchecked_constants_are_named(node, memory):
    table = energy_table(node, memory)
    memory_too = {table.memory_name} if memory in ("hbm2", "lpddr5") else set()
    found = {name for name, constant in table.constants.items() if not constant.checked}
    assert found == UNCHECKED[node] | memory_too
    assert bool(table.unchecked_note) == bool(found)
    assert all(name in table.unchecked_note for name in found)


def test_larger_costs_more():
    for table in tables():
        costs = [table.sram_pj_per_byte(size) for size in SIZES]
        assert costs == sorted(costs)
        for size, constant in table.sram.items():
            assert table.sram_pj_per_byte(size) == pytest.approx(constant.value / 8)
        # A byte from DRAM costs more than from the largest memory on chip.
        assert table.dram_pj_per_byte.low > costs[-1]
        for kind in ("int8", "int32"):
            assert table.operation_pj(f"{kind}_add") < table.operation_pj(f"{kind}_multiply")


@pytest.mark.parametrize(("memory", "bits"), [("hbm2", 64), ("lpddr4", 1)])
def test_dram_by_the_byte_whatever_the_unit(memory, bits):
    table = energy_table(memory=memory)
    assert table.dram_pj_per_byte.mid == pytest.approx(table.dram.value * 8 / bits)
    assert table.dram_pj_per_byte.low == pytest.approx(table.dram.low * 8 / bits)
    assert energy_table(memory=memory.upper()) is table


def test_every_memory_of_an_accelerator_has_a_table():
    assert set(memories()) == {name.lower() for name in MEMORIES}
    assert {energy_table(memory=name).memory_name for name in memories()} == set(MEMORIES)
    for name in MEMORIES:
        own = dataclasses.replace(PRESETS["sparqle/edge"], memory=name)
        assert default_table(own, "45nm") is energy_table("45nm", name)


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
    synthesised = {n for n, p in parameters.items() if p.basis == "synthesised"}
    assert synthesised == set(read_data("area")["factors"])
    assert {p.basis for n, p in parameters.items() if n not in synthesised} == {"assumed"}


@pytest.mark.parametrize("node", nodes())
def test_sram_between_and_beyond_cited_sizes(node):
    table = energy_table(node)
    sizes = [4 * KIB << i for i in range(13)]  # 4 KiB to 16 MiB
    costs = [table.sram_pj_per_byte(size) for size in sizes]
    assert costs == sorted(costs)
    # A straight line in both logarithms: the same factor from octave to octave.
    factors = [b / a for a, b in itertools.pairwise(costs)]
    assert factors[:3] == pytest.approx([factors[0]] * 3)  # 4 to 32 KiB
    assert factors[3:] == pytest.approx([factors[3]] * len(factors[3:]))
    low, high = (table.sram[size].value / 8 for size in SIZES[1:])
    assert factors[3] == pytest.approx((high / low) ** (1 / 5))


def test_adders_are_a_line_through_the_cited_widths():
    table = energy_table("45nm")
    narrow, wide = table.operation_pj("int8_add"), table.operation_pj("int32_add")
    assert table.add_pj(8) == pytest.approx(narrow)
    assert table.add_pj(20) == pytest.approx((narrow + wide) / 2)
    assert table.add_pj(32) == pytest.approx(wide)


def test_presets_come_with_their_memory():
    named = {name: default_table(accelerator).name for name, accelerator in PRESETS.items()}
    assert named == {
        "sparqle/edge": "7nm + LPDDR4",
        "sparqle/mobile": "7nm + LPDDR5 (estimate)",
        "sparqle/server": "7nm + HBM2",
    }
    own = dataclasses.replace(PRESETS["sparqle/server"], name="mine")
    assert default_table(own, "45nm").name == "45nm + HBM2"


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
    table = energy_table("45nm", "hbm2")
    data = plain(table)
    assert table.name == "45nm + HBM2"
    assert data["operations"]["fp32_add"]["source"].startswith("M. Horowitz")
    assert data["dram"]["high"] > data["dram"]["value"]
    assert data["operations"]["fp32_add"]["checked"]
    assert data["dram"]["checked"] == ""
    assert data["sram"]["8192"]["year"] == 2014
