"""Joules: events times the constants of a table.

`prices` says what every event costs on an accelerator; `energy` adds up. Each price depends on at
most one figure that is not certain (a parameter, or the range that a source gives), so the band of
a reduction is found by trying the ends of all of them (`reduction`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import Band, EnergyTable
from sparqle_tvm.target.cost.events import Events

COMPONENTS = (
    "multiply",
    "accumulate",
    "scale",
    "sparsity",
    "activation_buffer",
    "weight_buffer",
    "accumulator_buffer",
    "dram",
    "vector",
    "static",
)
"""Parts that energy is reported by.

``multiply``: products and what brings digits to the multipliers. ``accumulate``: adder trees and
accumulators. ``scale``: scales of weight groups, and the drain. ``sparsity``: what only split
precision needs, encoding and locating of digits. ``static``: leakage and idle clocks.
"""


@dataclass(frozen=True)
class Price:
    """What an event costs.

    Attributes
    ----------
    component : str
        One of `COMPONENTS`.
    event : str
        Attribute of `Events`.
    pj : Band
        Energy of one event in pJ.
    uncertain : str
        The parameter that the band comes from; empty if there is none.
    """

    component: str
    event: str
    pj: Band
    uncertain: str = ""


@dataclass(frozen=True)
class Term:
    """Energy of all events of one price in pJ."""

    component: str
    pj: Band
    uncertain: str


@dataclass(frozen=True)
class EnergyBreakdown:
    """Energy by component.

    Attributes
    ----------
    table : str
        Name of the energy table.
    terms : tuple of Term
        Energy of each price; they add up to the whole.
    """

    table: str
    terms: tuple[Term, ...]

    @property
    def components(self) -> dict[str, Band]:
        """Energy by component in pJ, in the order of `COMPONENTS`."""
        parts = {name: Band.exact(0.0) for name in COMPONENTS}
        for term in self.terms:
            parts[term.component] += term.pj
        return parts

    @property
    def total_pj(self) -> Band:
        """All energy in pJ; low and high if every parameter is at that end."""
        return sum((term.pj for term in self.terms), Band.exact(0.0))

    @property
    def joules(self) -> Band:
        """All energy in joules."""
        return self.total_pj * 1e-12


def energy(
    events: Events,
    accelerator: Accelerator,
    table: EnergyTable,
    *,
    static_watts: float | None = None,
) -> EnergyBreakdown:
    """Energy of events.

    Parameters
    ----------
    events : Events
        What was done.
    accelerator : Accelerator
        Sizes of buffers, widths of digits, clock.
    table : EnergyTable
        What a single operation costs.
    static_watts : float, optional
        Leakage and idle power; by default that of the table's parameter ``static_power``.

    Raises
    ------
    InvalidArgumentError
        If the power is negative or not finite.
    """
    counts = vars(events)
    return EnergyBreakdown(
        table=table.name,
        terms=tuple(
            Term(price.component, price.pj * counts[price.event], price.uncertain)
            for price in prices(accelerator, table, static_watts=static_watts)
        ),
    )


def reduction(before: EnergyBreakdown, after: EnergyBreakdown) -> Band:
    """Share of the energy of `before` that `after` saves.

    Low and high are the ends over all combinations of low and high of what is uncertain, each
    taken alike in both.
    """
    names = sorted({t.uncertain for b in (before, after) for t in b.terms if t.uncertain})
    if not before.total_pj.mid:
        return Band.exact(0.0)

    def sums(breakdown: EnergyBreakdown) -> tuple[float, dict[str, Band]]:
        parts = {name: Band.exact(0.0) for name in names}
        certain = 0.0
        for term in breakdown.terms:
            if term.uncertain:
                parts[term.uncertain] += term.pj
            else:
                certain += term.pj.mid
        return certain, parts

    (fixed_before, of_before), (fixed_after, of_after) = sums(before), sums(after)
    # Sums for every choice of an end per name, built up name by name.
    pairs = [(fixed_before, fixed_after)]
    for name in names:
        b, a = of_before[name], of_after[name]
        ends = {(b.low, a.low), (b.high, a.high)}
        pairs = [(x + dx, y + dy) for (x, y), (dx, dy) in itertools.product(pairs, ends)]
    mid = 1.0 - after.total_pj.mid / before.total_pj.mid
    values = [1.0 - y / x for x, y in pairs] + [mid]
    return Band(min(values), mid, max(values))


def prices(
    accelerator: Accelerator, table: EnergyTable, *, static_watts: float | None = None
) -> tuple[Price, ...]:
    """What every event costs on an accelerator; for `static_watts` see `energy`."""
    return (
        *_array_prices(accelerator, table),
        *_sparsity_prices(accelerator, table),
        *_memory_prices(accelerator, table),
        *_vector_prices(table),
        _static_price(accelerator, table, static_watts),
    )


def _array_prices(accelerator: Accelerator, table: EnergyTable) -> Iterator[Price]:
    k = accelerator.digit_bits
    tree_growth = math.log2(accelerator.lanes)
    add = table.operation_pj("int8_add")
    register = table.parameters["operand_register"] * (add / 8)
    for event, bits in (("lsb_products", k), ("msb_products", k), ("wide_products", 2 * k)):
        multiply = _multiply(table, bits, k)
        yield Price("multiply", event, multiply, "narrow_multiply" if bits * k != 64 else "")
        yield Price("multiply", event, register * (bits + k), "operand_register")
        # Products of b + k bits are added up in a tree that is a little wider at its root.
        yield Price("accumulate", event, Band.exact(table.add_pj(bits + k + tree_growth)))
    accumulate = Band.exact(table.operation_pj("int32_add"))
    yield Price("accumulate", "accumulator_updates", accumulate)
    scaled = table.parameters["scale_unit"] * table.operation_pj("int32_multiply")
    yield Price("scale", "scale_operations", scaled, "scale_unit")
    yield Price("scale", "scale_operations", Band.exact(table.add_pj(64)))
    drain = 2 * table.operation_pj("fp32_multiply") + table.operation_pj("int32_add")
    yield Price("scale", "drained_elements", Band.exact(drain))
    # Additions of biases cost less than a product, exact divisions by a constant a little more.
    yield Price("scale", "drain_operations", Band.exact(table.operation_pj("fp32_multiply")))


def _multiply(table: EnergyTable, bits: int, other_bits: int) -> Band:
    exponents = table.parameters["narrow_multiply"]
    whole = table.operation_pj("int8_multiply")
    ends = (exponents.low, exponents.mid, exponents.high)
    # Beyond 64 products of bits a larger exponent costs more.
    return Band(*sorted(whole * (bits * other_bits / 64) ** x for x in ends))


def _sparsity_prices(accelerator: Accelerator, table: EnergyTable) -> Iterator[Price]:
    add = table.operation_pj("int8_add")
    prices = [
        ("selected_products", "weight_select"),
        ("find_first_steps", "find_first"),
        ("encoded_elements", "encode"),
    ]
    if accelerator.msb_across_groups:
        prices.append(("selected_products", "segmented_tree"))
    for event, name in prices:
        yield Price("sparsity", event, table.parameters[name] * add, name)


def _memory_prices(accelerator: Accelerator, table: EnergyTable) -> Iterator[Price]:
    for buffer in ("activation", "weight", "accumulator"):
        size = accelerator.memory_bytes(buffer)
        per_byte = Band.exact(table.sram_pj_per_byte(size))
        for way in ("read", "write"):
            yield Price(f"{buffer}_buffer", f"{buffer}_{way}_bytes", per_byte)
    for way in ("read", "write"):
        yield Price("dram", f"dram_{way}_bytes", table.dram_pj_per_byte, table.memory)


def _vector_prices(table: EnergyTable) -> Iterator[Price]:
    multiply, add = table.operation_pj("fp16_multiply"), table.operation_pj("fp32_add")
    yield Price("vector", "vector_operations", Band.exact(multiply))
    yield Price("vector", "vector_macs", Band.exact(multiply + add))


def _static_price(
    accelerator: Accelerator, table: EnergyTable, static_watts: float | None
) -> Price:
    if static_watts is not None:
        if not (math.isfinite(static_watts) and static_watts >= 0):
            raise InvalidArgumentError(f"static_watts = {static_watts} must not be negative")
        pj_per_cycle = static_watts * 1e3 / accelerator.clock_ghz
        return Price("static", "cycles", Band.exact(pj_per_cycle))
    k = accelerator.digit_bits
    product = _multiply(table, k, k).mid + table.add_pj(2 * k + math.log2(accelerator.lanes))
    share = table.parameters["static_power"]
    return Price("static", "cycles", share * (product * accelerator.macs_per_cycle), "static_power")
