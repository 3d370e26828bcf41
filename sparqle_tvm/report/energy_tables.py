"""The energy tables as Markdown: every constant with its source, every price with its formula."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.report.document import Column, Document, OwnMarkdown, Section, Table
from sparqle_tvm.report.writers import to_markdown
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
    return to_markdown(
        Document(
            title="Energy tables",
            subtitle=f"Made by `{COMMAND}` from the files in `target/cost/data`; a test holds it "
            "to them. A table is a node and a memory type (`--node`, `--memory`); every report of "
            "energy names its table. Figures were typed from memory of their sources, and most "
            "compared with public copies of them since; those that were not say so.",
            sections=(
                *_nodes(),
                _memories(),
                _parameters(),
                _prices(_SHOWN, default_table(_SHOWN)),
            ),
        )
    )


def _nodes() -> Iterator[Section]:
    tables = [energy_table(node) for node in nodes()]
    heads = ["", *(t.node for t in tables)]
    rows = [
        [name.replace("_", " "), *(_value(t.operations[name]) for t in tables)]
        for name in tables[0].operations
    ]
    yield Section("Operations, pJ", (_table("operations", heads, rows),))
    sizes = sorted(tables[0].sram)
    rows = [[f"{s // 1024} KiB", *(_value(t.sram[s]) for t in tables)] for s in sizes]
    sources = []
    for table in tables:
        constants = (*table.operations.values(), *table.sram.values())
        checked = ", ".join(sorted({c.checked for c in constants if c.checked}))
        sources += [
            f"- {table.node}: {source}. Checked against {checked}"
            for source in sorted({_source(c) for c in constants})
        ]
    note = (
        "Between these sizes energy is a power of the size; the line of the outer two goes on "
        "beyond them. An adder costs a straight line in its width through 8 and 32 bits."
    )
    parts = (_table("sram", heads, rows), note, OwnMarkdown("\n".join(sources)))
    yield Section("On-chip memory, pJ per 64 bits", parts)


def _memories() -> Section:
    rows = []
    for memory in memories():
        table = energy_table(memory=memory)
        band = table.dram_pj_per_byte * (1 / 8)
        unit = f"{table.dram.value:g} {table.dram.unit}"
        name = table.memory_name + (" (estimate)" if table.estimate else "")
        source = ". ".join(filter(None, (_source(table.dram), table.dram.note)))
        rows.append([name, _band(band), unit, source, table.dram.checked or NOT_CHECKED])
    heads = ["", "pJ per bit", "as published", "source", "checked against"]
    return Section("DRAM", (_table("dram", heads, rows),))


def _parameters() -> Section:
    rows = [
        [f"`{name}`", f"{p.low:g}", f"{p.mid:g}", f"{p.high:g}", p.basis, p.unit, p.why]
        for name, p in energy_table().parameters.items()
    ]
    text = (
        "Reports give the band that these ranges make. A saving has the lowest and highest value "
        "over all combinations of their ends, each taken alike for both schemes. Synthesised: a "
        "ratio of areas (docs/area.md) stands for one of energies, because switching "
        "activity is not measured. Assumed: neither cited nor synthesised. All figures above this "
        "section are cited."
    )
    table = _table("parameters", ["", "low", "mid", "high", "basis", "unit", "why"], rows)
    return Section("What no source gives a figure for", (text, table))


def _prices(accelerator: Accelerator, table: EnergyTable) -> Section:
    rows = [
        [price.component, price.event.replace("_", " "), _band(price.pj), _uncertain(price)]
        for price in prices(accelerator, table)
    ]
    return Section(
        f"What an event costs on {accelerator.name} with {table.name}",
        (_table("prices", ["component", "event", "pJ", "uncertain"], rows),),
    )


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


def _table(name: str, heads: list[str], rows: list[list[str]]) -> Table:
    columns = tuple(Column(str(i), head) for i, head in enumerate(heads))
    return Table(name, "", columns, tuple({str(i): x for i, x in enumerate(row)} for row in rows))
