"""Tables for a terminal, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparqle_tvm.results.balance import BalanceResult
from sparqle_tvm.results.run import (
    Comparison,
    EnergyComparison,
    LayerSparsity,
    PhaseResult,
    RunResult,
    TuningGain,
)
from sparqle_tvm.target.accelerator import Accelerator

MAX_WIDTH_COLUMNS = 100


def print_run(result: RunResult, console: Console | None = None) -> None:
    """Print what `sparqle run` found out.

    Parameters
    ----------
    result : RunResult
        The measurement.
    console : rich.console.Console, optional
        Where to print; standard output by default.
    """
    console = console or Console()
    console.print(run_tables(result), width=min(console.width, MAX_WIDTH_COLUMNS))


def run_tables(result: RunResult) -> Group:
    """All tables of a run, one below the other."""
    parts: list[RenderableType] = [
        _about(result),
        _perplexity(result),
        *_loss(result),
        _sparsity(result),
        _costs(result),
        _bounds(result),
        *_notes(result),
    ]
    return Group(*(part for table in parts for part in (table, Text())))


def _about(result: RunResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("model", f"{result.model_name}  (sha256 {result.model_sha256[:12]})")
    table.add_row("text", f"{result.text_name}, the first {result.tokens} tokens")
    table.add_row("target", describe(result.accelerator))
    return table


def describe(accelerator: Accelerator) -> str:
    """One line about an accelerator."""
    a = accelerator
    buffers_kib = (
        a.activation_buffer_bytes + a.weight_buffer_bytes + a.accumulator_buffer_bytes
    ) // 1024
    return (
        f"{a.name}: {a.rows}x{a.cols} PEs of {a.lanes} {a.digit_bits}-bit lanes at "
        f"{a.clock_ghz:g} GHz, {buffers_kib} KiB of buffers, "
        f"{a.memory} {a.dram_bytes_per_cycle:g} bytes/cycle"
    )


def _perplexity(result: RunResult) -> Table:
    table = _table("Perplexity, by the form of the activations")
    for name in ("float", "int8", "split int8", "split = int8"):
        table.add_column(name, justify="right")
    p = result.perplexity
    table.add_row(
        f"{p['float']:.4f}",
        f"{p['int8']:.4f} ({p['int8'] / p['float'] - 1:+.2%})",
        f"{p['sparqle']:.4f} ({p['sparqle'] / p['float'] - 1:+.2%})",
        Text("bit for bit", style="green") if result.exact else Text("NO", style="bold red"),
    )
    return table


def _loss(result: RunResult) -> Iterator[Table]:
    """What scale factors lose, if there are any."""
    if result.loss is None:
        return
    loss, increase = result.loss, result.loss.increase
    table = _table("Loss of scale factors against int8, on text that calibration did not see")
    for name in ("budget", "encodings with factors", "tokens", "perplexity", "KL, nats"):
        table.add_column(name, justify="right")
    table.add_row(
        loss.budget,
        str(loss.encodings),
        str(increase.tokens),
        f"{increase.ratio:+.2%} ± {increase.ratio_error:.2%}",
        f"{increase.kl:.4f} ± {increase.kl_error:.4f}",
    )
    table.caption = f"calibrated on {loss.calibration_text}; measured on {loss.text}"
    yield table


def _sparsity(result: RunResult) -> Table:
    table = _table("MSB sparsity: share of activations whose high digit is zero")
    table.add_column("layer type", no_wrap=True)
    table.add_column("window")
    for name in ("layers", "MACs", "mean", "low", "high"):
        table.add_column(name, justify="right")
    for kind in result.kinds:
        table.add_row(
            kind.kind,
            ", ".join(kind.windows),
            str(kind.layers),
            f"{kind.macs_share:.1%}",
            *(f"{value:.1%}" for value in (kind.mean, kind.lowest, kind.highest)),
        )
    table.add_section()
    worst, best = _extremes(result)
    table.add_row(f"worst {worst.label}", worst.window, "", "", "", f"{worst.msb_sparsity:.1%}")
    table.add_row(f"best {best.label}", best.window, *[""] * 4, f"{best.msb_sparsity:.1%}")
    mean = f"{result.prefill.msb_sparsity:.1%}"
    table.add_row("mean, weighted by MACs", "", "", "", mean, style="bold")
    return table


def _extremes(result: RunResult) -> tuple[LayerSparsity, LayerSparsity]:
    ordered = sorted(result.layers, key=lambda layer: layer.msb_sparsity)
    return ordered[0], ordered[-1]


def _phases(result: RunResult) -> Iterator[tuple[str, PhaseResult]]:
    yield f"prefill, {result.prefill.tokens} tokens", result.prefill
    yield f"decode, 1 token after {result.decode.past}", result.decode


def _costs(result: RunResult) -> Table:
    table = _table("Cost against the dense baseline (two dense passes, 8-bit activations)")
    table.add_column("")
    table.add_column("")
    for name in ("dense", "split", "saved"):
        table.add_column(name, justify="right")
    for phase_name, phase in _phases(result):
        table.add_row(Text(phase_name, style="bold"))
        cycles = (phase.dense.mma_cycles, phase.sparqle.mma_cycles)
        _cost_row(table, "MAC array", "cycles", _cycles(cycles), phase.mma_reduction)
        for part, comparison in _parts(phase):
            _part_rows(table, part, comparison, result)
        table.add_section()
    return table


def _parts(phase: PhaseResult) -> Iterator[tuple[str, Comparison]]:
    yield "dense layers", phase.dense_layers
    yield "whole model", phase.whole_model


def _part_rows(table: Table, part: str, both: Comparison, result: RunResult) -> None:
    accelerator = result.accelerator
    cycles = (both.dense.cycles, both.sparqle.cycles)
    _cost_row(table, part, "cycles", _cycles(cycles), both.cycles_reduction)
    times = tuple(f"{accelerator.seconds(c) * 1e3:,.3f} ms" for c in cycles)
    _cost_row(table, "", "time", times, None)
    nbytes = (both.dense.dram_bytes, both.sparqle.dram_bytes)
    megabytes = tuple(f"{n / 1e6:,.2f} MB" for n in nbytes)
    _cost_row(table, "", "DRAM traffic", megabytes, both.dram_bytes_reduction)
    energy = EnergyComparison.of(both, accelerator, result.table)
    joules = tuple(f"{e.joules.mid * 1e3:,.3f} mJ" for e in (energy.dense, energy.sparqle))
    _cost_row(table, "", "energy", joules, energy.reduction.mid)


def _cost_row(
    table: Table, part: str, quantity: str, values: tuple[str, ...], saved: float | None
) -> None:
    shown = Text("")
    if saved is not None:
        shown = Text(f"{saved:.1%}", style="green" if saved > 0 else "yellow")
    table.add_row(f"  {part}", quantity, *values, shown)


def _bounds(result: RunResult) -> Table:
    table = _table("What limits the time: compute / memory")
    table.add_column("", no_wrap=True)
    table.add_column("")
    for name in ("dense", "split"):
        table.add_column(name, justify="right")
    for phase_name, phase in _phases(result):
        for part, both in _parts(phase):
            shares = (
                f"{totals.compute_bound_share:6.1%} / {totals.memory_bound_share:6.1%}"
                for totals in (both.dense, both.sparqle)
            )
            table.add_row(phase_name, part, *shares)
            phase_name = ""
    return table


_HOW = {
    "simulator": "Dense layers ran as programs on the simulator, which gave these logits and "
    "cycles.",
    "analytical": "Dense layers are counted in closed form from the real bitmaps.",
}


def _balance_note(balance: BalanceResult, dense_cycles: int) -> Text:
    """What sorting rows brought prefill."""
    if not balance.sorted_encodings:
        why = "is switched off" if balance.goal == "none" else "would not pay"
        return Text(f"Rows stay in their own order: sorting them {why}.", style="dim")
    before, after = (
        1 - cycles / dense_cycles for cycles in (balance.mma_cycles_in_order, balance.mma_cycles)
    )
    change = balance.layer_cycles / balance.layer_cycles_in_order - 1
    blocks = " or ".join(str(rows) for rows in balance.block_rows)
    return Text(
        f"Prefill: {balance.sorted_encodings} of {balance.encodings} encodings sort their rows, "
        f"{blocks} at a time, so that fewer wait in the MSB pass: the MAC array saves {after:.1%} "
        f"instead of {before:.1%}. With what sorting costs, the time of the dense layers changes "
        f"by {change:+.1%}.",
        style="dim",
    )


def _notes(result: RunResult) -> Iterator[Text]:
    yield Text(
        f"{_HOW[result.engine]} Their figures include the quantization and encoding of their "
        "inputs; the whole model adds attention, norms, RoPE, SwiGLU, residuals "
        f"and the 8-bit KV cache on the vector unit. Float tensors travel at "
        f"{8 * result.accelerator.float_bytes} bits.",
        style="dim",
    )
    if result.balance is not None:
        yield _balance_note(result.balance, result.prefill.dense.mma_cycles)
    bands = (
        f"{name} {band.low:.1%} to {band.high:.1%}"
        for name, phase in (("prefill", result.prefill), ("decode", result.decode))
        for band in [
            EnergyComparison.of(phase.whole_model, result.accelerator, result.table).reduction
        ]
    )
    yield Text(
        f"Energy by the table {result.table.name}. With all that has no published value at its "
        f"low or high end, the whole model saves: {', '.join(bands)}.",
        style="dim",
    )
    if result.tuning is not None:
        yield Text(_tuning_gain(result.tuning), style="bold")
    if result.uncounted:
        yield Text(
            f"Not counted, because their weights are not integers: {_names(result.uncounted)}",
            style="yellow",
        )
    saturated = sum(layer.saturated for layer in result.layers)
    if saturated:
        yield Text(f"{saturated} activations were saturated by their window.", style="yellow")


def _tuning_gain(gain: TuningGain) -> str:
    phases = (
        f"{name} {before:,} -> {after:,} cycles ({after / before - 1:+.1%})"
        for name, (default, tuned) in gain.phases.items()
        for before, after in [
            (default.dense_layers.sparqle.cycles, tuned.dense_layers.sparqle.cycles)
        ]
    )
    return (
        f"Schedules from {gain.database} instead of the default ones, dense layers in split form: "
        f"{'; '.join(phases)}."
    )


def _names(names: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")


def _cycles(cycles: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{c:,}" for c in cycles)
