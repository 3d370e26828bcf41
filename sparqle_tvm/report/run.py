"""What is said about a finished `sparqle run`, on a terminal and in a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.attention import attention_sections, stored_as
from sparqle_tvm.report.document import (
    Card,
    Column,
    Document,
    Notice,
    Part,
    Picture,
    Section,
    Table,
)
from sparqle_tvm.report.passes import (
    LIMIT_NAMES,
    cost_tables,
    counted_by,
    describe,
    figure,
)
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.report.target import fields_table
from sparqle_tvm.report.verdict import verdicts
from sparqle_tvm.results.losses import RunLoss
from sparqle_tvm.results.passes import PassResult, share_saved
from sparqle_tvm.results.run import LayerSparsity, Measured, RunResult, SortingResult, TuningGain
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.energy_table import EnergyTable

_HOW = {
    "simulator": "The dense layers ran as programs on the cycle-level simulator, which computed "
    "the logits too.",
    "analytical": "The dense layers are counted in closed form from the bitmaps of this text.",
}


def run_document(run: RunResult) -> Document:
    """What `sparqle run` prints."""
    attention = attention_sections(run, by_layer=False)
    return document_of(
        run, (cost_section(run), perplexity_section(run), *attention, sparsity_section(run))
    )


def document_of(run: RunResult, sections: tuple[Section, ...]) -> Document:
    """Title and cards of a run above some sections."""
    return Document(
        title=f"{run.model.name} on {run.accelerator.name}",
        subtitle=f"The first {run.text.tokens} tokens of {run.text.name}. Model file: SHA-256 "
        f"{run.model.sha256[:12]}. {describe(run.accelerator)}.",
        cards=tuple(_cards(run)),
        sections=sections,
        verdict=tuple(verdicts(run.passes)),
    )


def _cards(run: RunResult) -> Iterator[Card]:
    """Exactness, sparsity and what is saved."""
    yield Card(
        "Logits of the split model",
        "bit for bit" if run.exact else "NOT exact",
        f"against int8; perplexity {run.perplexity['sparqle']:.2f}, "
        f"float activations {run.perplexity['float']:.2f}",
    )
    yield Card(
        "MSB sparsity",
        formats.percent(run.msb_sparsity.mean),
        "of the high digits are zero, weighted by MACs",
    )
    yield from saving_cards(run.passes, run.table, counted_by(run.engine))


def saving_cards(passes: Sequence[PassResult], table: EnergyTable, counted: str) -> Iterator[Card]:
    """What is saved of time and energy, pass by pass; a call alone needs no name of its pass.

    `counted` says how: `FORMULA` or `SIMULATOR`.
    """
    for one in passes:
        dense, split = (one.schemes[s].dense_layers.seconds for s in ("dense", "sparqle"))
        yield Card(
            _of_pass(one, "time, dense layers"),
            formats.change(one.saved("sparqle", "dense_layers").cycles),
            f"{formats.seconds(split)} instead of {formats.seconds(dense)}; {_whole(one)} "
            f"{formats.change(one.saved('sparqle').cycles)}; {counted}",
        )
    for one in passes:
        saved, shown = one.saved("sparqle", "dense_layers").energy, _energy(one, "dense_layers")
        tiles = "with the same tiles, and with tiles of its own; " if TO in shown else ""
        yield Card(
            _of_pass(one, "energy, dense layers"),
            shown,
            f"{tiles}by constants {formats.change(saved.high)} to {formats.change(saved.low)}; "
            f"{_whole(one)} {_energy(one, 'whole_model')}; table {table.name}; {counted}",
        )


TO = " to "


def _energy(one: PassResult, part: str) -> str:
    """What is saved with the tiles of the split form for both, to that with tiles for each."""
    own = formats.change(one.saved("sparqle", part).energy.mid)
    same = formats.change(one.same_tiles[part]) if one.same_tiles else own
    return own if same == own else f"{same}{TO}{own}"


def _of_pass(one: PassResult, figure_name: str) -> str:
    text = figure_name if one.phase == "call" else f"{one.phase} {figure_name}"
    return text.capitalize()


def _whole(one: PassResult) -> str:
    return "whole call" if one.phase == "call" else "whole model"


def cost_section(run: RunResult) -> Section:
    """Time, traffic, energy and what limits them, for both passes."""
    parts: list[Part] = [
        f"Prefill is {run.prefill.tokens} tokens at once, decode one token after "
        f"{run.decode.past}. {_HOW[run.engine]} Float tensors travel at "
        f"{8 * run.accelerator.float_bytes} bits.",
        *cost_tables(run.passes, run.accelerator),
        _energy_note(run),
    ]
    if run.balance is not None:
        parts.append(_sorting_note(run.balance, run.prefill.schemes["dense"].mma_cycles))
    if run.tuning is not None:
        parts.append(Notice(_tuning_note(run.tuning)))
    if run.not_on_array:
        parts.append(Notice(f"The vector unit computes attention: {run.not_on_array}."))
    if run.uncounted:
        parts.append(
            Notice(f"Not counted, because their weights are not integers: {_names(run.uncounted)}.")
        )
    return Section("What it costs", parts)


def perplexity_section(run: RunResult) -> Section:
    """Perplexity by the form of the activations, and what scale factors lose."""
    p = run.perplexity
    notes, alone = [], p.get("int8_attention")
    if alone is not None:
        notes.append(
            "int8 and split int8 compute attention in int8, too, with keys and values stored as "
            f"{stored_as(run)}; that alone makes of float {alone:.4f}, "
            f"{formats.loss(alone / p['float'] - 1)}."
        )
    if run.float_kept:
        notes.append(
            "What float activations give was kept from an earlier run of the same file, tokens and "
            "code (sparqle run --no-cache computes it again)."
        )
    row: dict[str, Any] = {
        **p,
        "int8_increase": p["int8"] / p["float"] - 1,
        "sparqle_increase": p["sparqle"] / p["float"] - 1,
        "exact": run.exact,
    }
    table = Table(
        name="perplexity",
        title="Perplexity, by the form of the activations",
        columns=(
            figure("float", "float", "{:.4f}".format),
            figure("int8", "int8", "{:.4f}".format),
            figure("int8_increase", "to float", formats.loss),
            figure("sparqle", "split int8", "{:.4f}".format),
            figure("sparqle_increase", "to float", formats.loss),
            Column("exact", "split = int8", lambda exact: "bit for bit" if exact else "NO"),
        ),
        rows=(row,),
        note=" ".join(notes),
    )
    return Section("What it changes", (table, *([] if run.loss is None else [_loss(run.loss)])))


def _loss(loss: RunLoss) -> Table:
    return Table(
        name="loss",
        title="Loss of scale factors against int8, on text that calibration did not see",
        columns=(
            Column("budget", "budget"),
            figure("encodings", "with factors", str),
            figure("tokens", "tokens", str),
            *loss_columns(),
        ),
        rows=({**asdict(loss), **asdict(loss.increase)},),
        note=f"Calibrated on {loss.calibration_text}; measured on {loss.text}.",
    )


def loss_columns(prefix: str = "", where: str = "") -> tuple[Column, ...]:
    """Columns of a `results.losses.Loss`, whose keys may have a prefix."""
    increase, kl = f"{prefix}perplexity_increase", f"{prefix}kl_nats"
    perplexity, divergence = (f"{name} {where}".rstrip() for name in ("perplexity", "KL"))
    return (
        figure(increase, perplexity, formats.loss, error=f"{increase}_error"),
        figure(kl, f"{divergence}, nats", "{:.4f}".format, error=f"{kl}_error"),
    )


def sparsity_section(run: Measured, *parts: Part) -> Section:
    """Where the digits are zero, after other parts."""
    table = Table(
        name="sparsity",
        title="MSB sparsity: share of activations whose high digit is zero",
        columns=(
            Column("kind", "layers that read it"),
            Column("windows", "window", ", ".join),
            figure("layers", "tensors", str),
            figure("macs_share", "MACs", formats.percent),
            figure("mean", "mean", formats.percent),
            figure("lowest", "lowest", formats.percent),
            figure("highest", "highest", formats.percent),
        ),
        rows=tuple(asdict(kind) for kind in run.msb_sparsity.kinds),
    )
    ordered = sorted(run.msb_sparsity.layers, key=lambda layer: layer.msb_sparsity)
    found: list[Part] = [*parts, table, windows_table(run.msb_sparsity.layers)]
    if ordered:
        worst, best = ordered[0], ordered[-1]
        found.append(
            f"Weighted by MACs {formats.percent(run.msb_sparsity.mean)}; worst {worst.label} "
            f"{formats.percent(worst.msb_sparsity)}, best {best.label} "
            f"{formats.percent(best.msb_sparsity)}."
        )
    return Section("MSB sparsity", found)


def windows_table(layers: Sequence[LayerSparsity]) -> Table:
    """The windows that occur, why, and how many tensors have them."""
    found = Counter((layer.kind, layer.window, layer.window_reason) for layer in layers)
    return Table(
        name="windows",
        title="Windows: which values have no high digit",
        columns=(
            Column("kind", "layers that read it"),
            Column("window", "window"),
            Column("reason", "why"),
            figure("tensors", "tensors", str),
        ),
        rows=tuple(
            {"kind": kind, "window": window, "reason": reason, "tensors": count}
            for (kind, window, reason), count in found.items()
        ),
        note="signed: 8 below to 7 above its centre; unsigned: 0 to 15.",
    )


def roofline_picture(passes: Sequence[PassResult], accelerator: Accelerator, what: str) -> Picture:
    """The roofline of the layers of a run, a call or an estimate."""
    return Picture(
        "roofline",
        f"What memory and array allow, and what the layers of this {what} reach, in "
        "multiply-accumulates at full precision. The solid roof is one digit pass, the "
        "dashed one two passes; thin lines lead from the dense to the split form of a "
        "layer. A layer under the slope is limited by memory. Names stand beside the middle of "
        "all split layers of their kind.",
        lambda narrow: drawing("roofline").draw_roofline(passes, accelerator, narrow=narrow),
    )


def layer_sections(run: RunResult) -> Iterator[Section]:
    """Where the cycles go, the roofline, and where the digits are zero."""
    yield Section(
        "Cycles by layer",
        (
            Picture(
                "cycles",
                "Cycles of the layers of this run in the split form, block by block; the line is "
                "the dense baseline. The output layer works on one token and has a scale of its "
                "own.",
                lambda narrow: drawing("layers").draw_cycles(run.passes, narrow=narrow),
            ),
        ),
    )
    yield Section(
        "Roofline",
        (roofline_picture(run.passes, run.accelerator, "run"),),
    )
    yield sparsity_section(
        run,
        Picture(
            "sparsity",
            "Share of activations whose high digit is zero, by block and by the layers that read "
            "them.",
            lambda narrow: drawing("layers").draw_sparsity(run.prefill, narrow=narrow),
        ),
    )


def detail_tables(passes: Sequence[PassResult], accelerator: Accelerator) -> Iterator[Table]:
    """The accelerator, and every layer."""
    yield fields_table(accelerator, folded=True)
    yield from (_layer_table(one) for one in passes if {"dense", "sparqle"} <= set(one.schemes))


def _layer_table(one: PassResult) -> Table:
    rows = []
    for layer in one.layers:
        row: dict[str, Any] = {
            key: getattr(layer, key) for key in ("label", "times", "m", "n", "k", "msb_sparsity")
        }
        for scheme, cost in layer.costs.items():
            name = "split" if scheme == "sparqle" else scheme
            row |= {
                f"{name}_cycles": cost.total_cycles,
                f"{name}_dram_bytes": cost.dram_bytes,
                f"{name}_limit": LIMIT_NAMES[cost.limit],
            }
        row["cycles_saved"] = share_saved(row["dense_cycles"], row["split_cycles"])
        rows.append(row)
    return Table(
        name=f"{one.phase}_layers",
        title=f"Every dense layer of the {one.phase}",
        columns=(
            Column("label", "layer"),
            figure("times", "layers", formats.grouped),
            figure("m", "rows", formats.grouped),
            figure("n", "outputs", formats.grouped),
            figure("k", "inputs", formats.grouped),
            figure("msb_sparsity", "MSB sparsity", formats.percent),
            figure("dense_cycles", "cycles, dense", formats.grouped),
            figure("split_cycles", "split", formats.grouped),
            figure("cycles_saved", "saved", formats.percent),
            figure("dense_dram_bytes", "DRAM, dense", formats.nbytes),
            figure("split_dram_bytes", "split", formats.nbytes),
            Column("dense_limit", "most goes to, dense"),
            Column("split_limit", "split"),
        ),
        rows=tuple(rows),
        folded=True,
    )


def _energy_note(run: RunResult) -> str:
    bands = (
        f"{one.phase} {formats.percent(band.low)} to {formats.percent(band.high)}"
        for one in run.passes
        for band in [one.saved("sparqle").energy]
    )
    return (
        f"Energy by the table {run.table.name}. With all that has no published value at its low "
        f"or high end, the whole model saves: {', '.join(bands)}."
    )


def _sorting_note(sorting: SortingResult, dense_cycles: int) -> str:
    """What sorting rows brought prefill."""
    if not sorting.sorted_encodings:
        why = "is switched off" if sorting.goal == "none" else "would not pay"
        return f"Rows stay in their own order: sorting them {why}."
    before, after = (
        formats.percent(share_saved(dense_cycles, cycles))
        for cycles in (sorting.mma_cycles_in_order, sorting.mma_cycles)
    )
    change = sorting.layer_cycles / sorting.layer_cycles_in_order - 1
    blocks = " or ".join(str(rows) for rows in sorting.block_rows)
    return (
        f"Prefill: {sorting.sorted_encodings} of {sorting.encodings} encodings sort their rows, "
        f"{blocks} at a time, so that fewer wait in the MSB pass: the MAC array saves {after} "
        f"instead of {before}. With what sorting costs, the time of the dense layers changes by "
        f"{formats.change(-change)}."
    )


def _tuning_note(gain: TuningGain) -> str:
    phases = (
        f"{name} {cycles.default:,} -> {cycles.tuned:,} cycles "
        f"({formats.signed_percent(cycles.tuned / cycles.default - 1)})"
        for name, cycles in (("prefill", gain.prefill.cycles), ("decode", gain.decode.cycles))
    )
    return (
        f"Schedules from {gain.database} instead of the default ones, dense layers in split form: "
        f"{'; '.join(phases)}."
    )


def _names(names: tuple[str, ...], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
