"""Tables of `sparqle estimate` for a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparqle_tvm.models.shapes import LAYER_TYPES
from sparqle_tvm.report.tables import MAX_WIDTH_COLUMNS, describe
from sparqle_tvm.results.estimate import BASELINE, LIMITS, PARTS, Estimate, PartEstimate
from sparqle_tvm.target.cost.baselines import scheme_name

_PART_NAMES = {"dense_layers": "dense layers", "whole_model": "whole model"}
_LIMIT_NAMES = {
    "compute": "computation",
    "weights": "weights",
    "activations": "activations",
    "kv_cache": "KV cache",
}


def print_estimate(result: Estimate, console: Console | None = None) -> None:
    """Print an estimate.

    Parameters
    ----------
    result : Estimate
        What was estimated.
    console : rich.console.Console, optional
        Where to print; standard output by default.
    """
    console = console or Console()
    console.print(estimate_tables(result), width=min(console.width, MAX_WIDTH_COLUMNS))


def estimate_tables(result: Estimate) -> Group:
    """All tables of an estimate, one below the other."""
    parts: list[RenderableType] = [_about(result), _costs(result), _limits(result)]
    parts += [_energy(result), *_notes(result)]
    return Group(*(part for table in parts for part in (table, Text())))


def _about(result: Estimate) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    tokens = f"{result.seq} tokens" if result.phase == "prefill" else f"1 token after {result.seq}"
    sequences = "1 sequence" if result.batch == 1 else f"{result.batch} sequences"
    table.add_row("model", f"{result.model.name}: {result.phase}, {tokens}, {sequences}")
    table.add_row("target", describe(result.accelerator))
    table.add_row("energy", f"table {result.table.name}")
    by_type = ", ".join(f"{k} {result.sparsity.msb_sparsity(k):.0%}" for k in LAYER_TYPES)
    label = result.sparsity.label + (" (transferred)" if result.sparsity.transferred else "")
    table.add_row("MSB sparsity", f"{result.msb_sparsity:.1%} by MACs ({by_type}): {label}")
    return table


def _costs(result: Estimate) -> Table:
    table = _table(f"Cost by scheme, and what it saves against {BASELINE}")
    table.add_column("", no_wrap=True)
    for name in ("time", "", "DRAM", "", "energy", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for part in PARTS:
        table.add_row(Text(_PART_NAMES[part], style="bold"))
        for scheme in result.schemes:
            name = scheme_name(result.accelerator, scheme)
            table.add_row(f"  {name}", *_figures(result, scheme, part))
        table.add_section()
    return table


def _figures(result: Estimate, scheme: str, part: str) -> Iterator[str | Text]:
    figures: PartEstimate = getattr(result.schemes[scheme], part)
    compared = BASELINE in result.schemes and scheme != BASELINE
    yield _seconds(figures.seconds)
    yield _saved(result.cycles_reduction(scheme, part)) if compared else ""
    yield f"{figures.dram_bytes / 1e9:,.3g} GB"
    yield _saved(result.dram_bytes_reduction(scheme, part)) if compared else ""
    yield _joules(figures.energy.joules.mid)
    yield _saved(result.energy_reduction(scheme, part).mid) if compared else ""


def _limits(result: Estimate) -> Table:
    table = _table("What limits the time, in shares of it")
    table.add_column("", no_wrap=True)
    for limit in LIMITS:
        table.add_column(_LIMIT_NAMES[limit], justify="right", no_wrap=True)
    for part in PARTS:
        table.add_row(Text(_PART_NAMES[part], style="bold"))
        for scheme, found in result.schemes.items():
            limits = getattr(found, part).limits
            name = scheme_name(result.accelerator, scheme)
            table.add_row(f"  {name}", *(f"{limits[limit]:.1%}" for limit in LIMITS))
        table.add_section()
    return table


def _energy(result: Estimate) -> Table:
    table = _table(f"Energy of the whole model by component, {result.table.name}")
    table.add_column("", no_wrap=True)
    parts = {s: found.whole_model.energy for s, found in result.schemes.items()}
    for scheme in parts:
        table.add_column(scheme_name(result.accelerator, scheme), justify="right", no_wrap=True)
    components = {scheme: breakdown.components for scheme, breakdown in parts.items()}
    for name in next(iter(components.values())):
        row = [components[scheme][name].mid * 1e-12 for scheme in parts]
        table.add_row(name.replace("_", " "), *map(_joules, row))
    table.add_section()
    totals = [breakdown.joules for breakdown in parts.values()]
    table.add_row("total", *(_joules(band.mid) for band in totals), style="bold")
    table.add_row("  low", *(_joules(band.low) for band in totals))
    table.add_row("  high", *(_joules(band.high) for band in totals))
    if BASELINE in result.schemes:
        saved = [result.energy_reduction(scheme, "whole_model") for scheme in parts]
        table.add_section()
        table.add_row("saved", *(f"{band.mid:.1%}" for band in saved), style="bold")
        table.add_row("  low", *(f"{band.low:.1%}" for band in saved))
        table.add_row("  high", *(f"{band.high:.1%}" for band in saved))
    return table


def _notes(result: Estimate) -> Iterator[Text]:
    for note in result.notes:
        yield Text(note, style="dim")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"


def _joules(joules: float) -> str:
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6)):
        if joules >= size:
            return f"{joules / size:,.2f} {unit}"
    return f"{joules * 1e6:,.2f} µJ" if joules else "0"


def _saved(share: float) -> Text:
    return Text(f"{share:.1%}", style="green" if share > 0 else "yellow")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")
