"""What is said about accelerators: those that come with the package, fields, and a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Notice, Part, Section, Table
from sparqle_tvm.report.passes import LIMIT_NAMES, describe, figure
from sparqle_tvm.results.target import ChosenTile, Rate, TargetCheck
from sparqle_tvm.target.accelerator import Accelerator, field_texts
from sparqle_tvm.target.cost.baselines import scheme_name


def targets_document(presets: Mapping[str, Accelerator]) -> Document:
    """A line for each accelerator, most of it as one reads it."""
    table = Table(
        name="targets",
        title="",
        columns=(
            Column("name", "name"),
            Column("array", "array"),
            figure("digit_bits", "digits, bits", str),
            figure("clock_ghz", "GHz", "{:g}".format),
            Column("memory", "memory"),
            figure("dram_bytes_per_second", "bandwidth", lambda v: formats.scaled(v, "B/s")),
            figure("onchip_bytes", "buffers", lambda v: f"{v // 1024:,} KiB"),
        ),
        rows=tuple(
            {
                **{key: getattr(a, key) for key in ("name", "digit_bits", "clock_ghz", "memory")},
                "array": f"{a.rows} x {a.cols} x {a.lanes}",
                "dram_bytes_per_second": a.dram_bytes_per_second,
                "onchip_bytes": a.onchip_bytes,
            }
            for a in presets.values()
        ),
        note="Array: PE rows x PE columns x lanes. All fields: sparqle target show NAME. One of "
        "your own: sparqle target new mine.toml --from NAME.",
    )
    return Document("Accelerators", "", sections=(Section("", (table,)),))


def fields_table(accelerator: Accelerator, *, folded: bool = False) -> Table:
    """Every field with its value, unit and meaning."""
    texts = field_texts()
    return Table(
        name="accelerator",
        title="Accelerator" if folded else "",
        columns=(
            Column("field", "field"),
            figure("value", "value", _plain),
            Column("unit", "unit"),
            Column("meaning", "meaning"),
        ),
        rows=tuple(
            {"field": name, "value": value, **asdict(texts[name])}
            for name, value in asdict(accelerator).items()
        ),
        folded=folded,
    )


def target_document(accelerator: Accelerator) -> Document:
    """All fields of an accelerator."""
    section = Section("Fields", (fields_table(accelerator),))
    return Document(accelerator.name, f"{describe(accelerator)}.", sections=(section,))


def check_document(found: TargetCheck) -> Document:
    """Rates, tiles, what limits a model, and warnings."""
    warnings: list[Part] = [Notice(f"{text[0].upper()}{text[1:]}.") for text in found.warnings]
    if not warnings:
        warnings.append(f"Nothing is out of balance for {found.model}.")
    return Document(
        f"{found.accelerator.name}, checked with {found.model}",
        f"{describe(found.accelerator)}.",
        sections=(
            Section("Balance", (*warnings, _limits_table(found))),
            Section("Rates and what fits", (_rates_table(found.rates),)),
            Section("Tiles", (_tiles_table(found),)),
            Section("Fields", (fields_table(found.accelerator, folded=True),)),
        ),
    )


_AMOUNTS = {"B/s": formats.scaled, "MACs/s": formats.scaled, "products/s": formats.scaled}


def _rates_table(rates: tuple[Rate, ...]) -> Table:
    def shown(row: Mapping[str, Any]) -> str:
        value, unit = row["value"], row["unit"]
        if unit in _AMOUNTS:
            return formats.scaled(value, unit)
        if unit == "B":
            return formats.nbytes(value)
        text = f"{value:,.1f}".removesuffix(".0")
        return f"{text} {unit}".rstrip()

    return Table(
        name="rates",
        title="",
        columns=(
            Column("name", ""),
            figure("shown", "", str),
            Column("meaning", ""),
        ),
        rows=tuple({**asdict(rate), "shown": shown(asdict(rate))} for rate in rates),
    )


def _tiles_table(found: TargetCheck) -> Table:
    def row(one: ChosenTile) -> dict[str, Any]:
        chosen = one.decisions
        return {
            "pass": f"{one.phase}: {one.m:,} x {one.n:,} x {one.k:,} ({one.layer})",
            "scheme": scheme_name(found.accelerator, one.scheme),
            "tile": f"{chosen.m:,} x {chosen.n:,} x {chosen.k:,}",
            "dataflow": chosen.dataflow,
            "onchip_bytes": one.onchip_bytes,
            "onchip_share": one.onchip_bytes / found.accelerator.onchip_bytes,
        }

    return Table(
        name="tiles",
        title=f"Tiles chosen for the gate and up layers of {found.model}, rows x outputs x inputs",
        columns=(
            Column("pass", ""),
            Column("scheme", "scheme"),
            Column("tile", "tile"),
            Column("dataflow", "dataflow"),
            figure("onchip_bytes", "on chip", formats.nbytes),
            figure("onchip_share", "of all", formats.percent),
        ),
        rows=tuple(map(row, found.tiles)),
        group="pass",
    )


def _limits_table(found: TargetCheck) -> Table:
    phases = list(found.limits)
    return Table(
        name="limits",
        title=f"What limits {found.model} under dense, in shares of the time",
        columns=(
            Column("limit", "", LIMIT_NAMES.__getitem__),
            *(figure(phase, phase, formats.percent) for phase in phases),
        ),
        rows=tuple(
            {"limit": limit, **{phase: found.limits[phase][limit] for phase in phases}}
            for limit in LIMIT_NAMES
            if any(found.limits[phase][limit] >= 0.0005 for phase in phases)
        ),
        note=f"Whole model, one sequence: prefill of {found.seq:,} tokens, decode of one token "
        f"after {found.seq:,}. By formula.",
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return formats.grouped(value) if isinstance(value, int) and value > 9999 else str(value)
