"""The energy tables as Markdown: every constant with its source, every price with its formula."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.cost.energy import Price, prices
from sparqle_tvm.target.cost.energy_table import (
    NOT_CHECKED,
    Band,
    Constant,
    EnergyTable,
    default_table,
    energy_table,
    memories,
    nodes,
)

COMMAND = "python benchmarks/energy_tables.py docs/energy.md"
_SHOWN = PRESETS["sparqle/edge"]


def energy_markdown() -> str:
    """All tables, their parameters, and what an event costs on ``sparqle/edge``."""
    lines = [
        "# Energy tables",
        "",
        f"Made by `{COMMAND}` from the files in `target/cost/data`; a test holds it to them. "
        "A table is a node and a memory type (`--node`, `--memory`); every report of energy names "
        "its table. Figures were typed from memory of their sources, and most compared with public "
        "copies of them since; those that were not say so.",
        "",
        *_nodes(),
        *_memories(),
        *_parameters(),
        *_prices(_SHOWN, default_table(_SHOWN)),
    ]
    return "\n".join(lines) + "\n"


def _nodes() -> Iterator[str]:
    tables = [energy_table(node) for node in nodes()]
    yield from ("## Operations, pJ", "")
    rows = [
        [name.replace("_", " "), *(_value(t.operations[name]) for t in tables)]
        for name in tables[0].operations
    ]
    yield from _table(["", *(t.node for t in tables)], rows)
    yield from ("", "## On-chip memory, pJ per 64 bits", "")
    sizes = sorted(tables[0].sram)
    rows = [[f"{s // 1024} KiB", *(_value(t.sram[s]) for t in tables)] for s in sizes]
    yield from _table(["", *(t.node for t in tables)], rows)
    yield from (
        "",
        "Between these sizes energy is a power of the size; the line of the outer two goes on "
        "beyond them. An adder costs a straight line in its width through 8 and 32 bits.",
        "",
    )
    for table in tables:
        constants = (*table.operations.values(), *table.sram.values())
        for source in sorted({_source(c) for c in constants}):
            checked = sorted({c.checked for c in constants if c.checked})
            yield f"- {table.node}: {source}. Checked against {', '.join(checked)}"
    yield ""


def _memories() -> Iterator[str]:
    yield from ("## DRAM", "")
    rows = []
    for memory in memories():
        table = energy_table(memory=memory)
        band = table.dram_pj_per_byte * (1 / 8)
        unit = f"{table.dram.value:g} {table.dram.unit}"
        name = table.memory_name + (" (estimate)" if table.estimate else "")
        source = ". ".join(filter(None, (_source(table.dram), table.dram.note)))
        rows.append([name, _band(band), unit, source, table.dram.checked or NOT_CHECKED])
    yield from _table(["", "pJ per bit", "as published", "source", "checked against"], rows)
    yield ""


def _parameters() -> Iterator[str]:
    yield from (
        "## What no source gives a figure for",
        "",
        "Reports give the band that these ranges make. A saving has the lowest and highest value "
        "over all combinations of their ends, each taken alike for both schemes.",
        "",
    )
    parameters = energy_table().parameters
    rows = [
        [f"`{name}`", f"{p.low:g}", f"{p.mid:g}", f"{p.high:g}", p.unit, p.why]
        for name, p in parameters.items()
    ]
    yield from _table(["", "low", "mid", "high", "unit", "why"], rows)
    yield ""


def _prices(accelerator: Accelerator, table: EnergyTable) -> Iterator[str]:
    yield from (f"## What an event costs on {accelerator.name} with {table.name}", "")
    rows = [
        [price.component, price.event.replace("_", " "), _band(price.pj), _uncertain(price)]
        for price in prices(accelerator, table)
    ]
    yield from _table(["component", "event", "pJ", "uncertain"], rows)


def _uncertain(price: Price) -> str:
    return price.uncertain if price.pj.low != price.pj.high else ""


def _value(constant: Constant) -> str:
    return f"{constant.value:g}" + ("" if constant.checked else f" ({NOT_CHECKED})")


def _source(constant: Constant) -> str:
    return f"{constant.source} ({constant.year})"


def _band(band: Band) -> str:
    if band.low == band.high:
        return f"{band.mid:.4g}"
    return f"{band.mid:.4g} ({band.low:.4g} to {band.high:.4g})"


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---' for _ in head)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
