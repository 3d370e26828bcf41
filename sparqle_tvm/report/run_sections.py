"""What a report says about one finished `sparqle run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Card, Column, Picture, Section, Table
from sparqle_tvm.report.tables import describe
from sparqle_tvm.results.run import reduction
from sparqle_tvm.results.run_file import Phase, RunFile

_PARTS = (("dense_layers", "dense layers"), ("whole_model", "whole model"))


def title_of(run: RunFile) -> str:
    """Model and target."""
    return f"{run.model} on {run.accelerator.name}"


def subtitle_of(run: RunFile) -> str:
    """Text, tokens and accelerator."""
    text = run.data["text"]
    return f"The first {text['tokens']} tokens of {text['name']}. {describe(run.accelerator)}."


def cards_of(run: RunFile) -> tuple[Card, ...]:
    """Exactness, sparsity and what is saved."""
    perplexity = run.data["perplexity"]
    exact = "bit for bit" if run.data["exact"] else "NOT exact"
    cards = [
        Card(
            "Logits of the split model",
            exact,
            f"against int8; perplexity {perplexity['sparqle']:.2f}, "
            f"float activations {perplexity['float']:.2f}",
        ),
        Card(
            "MSB sparsity",
            formats.percent(run.prefill.msb_sparsity),
            "of the high digits are zero, weighted by MACs",
        ),
    ]
    for phase in run.phases:
        dense, split = (_part(phase, "dense_layers", s)["cycles"] for s in ("dense", "sparqle"))
        whole = [_part(phase, "whole_model", s)["cycles"] for s in ("dense", "sparqle")]
        times = [formats.seconds(run.accelerator.seconds(c)) for c in (dense, split)]
        cards.append(
            Card(
                f"{phase.name.capitalize()} time, dense layers",
                formats.change(reduction(dense, split)),
                f"{times[1]} instead of {times[0]}; whole model "
                f"{formats.change(reduction(*whole))}",
            )
        )
    for phase in run.phases:
        saved, whole = (phase.energy[part]["reduction"] for part in ("dense_layers", "whole_model"))
        cards.append(
            Card(
                f"{phase.name.capitalize()} energy, dense layers",
                formats.change(saved["mid"]),
                f"{formats.change(saved['high'])} to {formats.change(saved['low'])}; whole model "
                f"{formats.change(whole['mid'])}; table {run.energy_table}",
            )
        )
    return tuple(cards)


def cost_section(run: RunFile) -> Section:
    """Time, traffic and what limits them, for both phases."""
    rows = tuple(row for phase in run.phases for row in _cost_rows(run, phase))
    table = Table(
        name="costs",
        title="Against the dense baseline: two dense passes, 8-bit activations, the same array",
        columns=(
            Column("part", ""),
            Column("dense_seconds", "time, dense", formats.seconds, True),
            Column("sparqle_seconds", "split", formats.seconds, True),
            Column("cycles_reduction", "change", formats.change, True),
            Column("dense_dram_bytes", "DRAM, dense", formats.nbytes, True),
            Column("sparqle_dram_bytes", "split", formats.nbytes, True),
            Column("dram_bytes_reduction", "change", formats.change, True),
        ),
        rows=rows,
        note="The MAC array alone is what would remain if memory were free. Dense layers include "
        "the quantization and encoding of their inputs; the whole model adds attention, norms, "
        "rotary embedding, SwiGLU, residuals and the 8-bit key-value cache on the vector unit.",
    )
    return Section("What it costs", (_how(run), table, _bounds_table(run)))


def layer_sections(run: RunFile) -> Iterator[Section]:
    """Where the cycles go, the roofline, and where the digits are zero."""
    from_run = "the layers of this run"

    def cycles(narrow: bool) -> Any:
        from sparqle_tvm.report.pictures.layers import draw_cycles

        return draw_cycles(run.phases, narrow=narrow)

    def roofline(narrow: bool) -> Any:
        from sparqle_tvm.report.pictures.roofline import draw_roofline

        return draw_roofline(run.phases, run.accelerator, narrow=narrow)

    def sparsity(narrow: bool) -> Any:
        from sparqle_tvm.report.pictures.layers import draw_sparsity

        return draw_sparsity(run.prefill, narrow=narrow)

    yield Section(
        "Cycles by layer",
        (
            Picture(
                "cycles",
                f"Cycles of {from_run} in the split form, block by block; the line is the dense "
                "baseline. The output layer works on one token and has a scale of its own.",
                cycles,
            ),
        ),
    )
    yield Section(
        "Roofline",
        (
            Picture(
                "roofline",
                f"What memory and array allow, and what {from_run} reach, in multiply-accumulates "
                "at full precision. The solid roof is one digit pass, the dashed one two passes; "
                "thin lines lead from the dense to the split form of a layer. A layer under the "
                "slope is limited by memory.",
                roofline,
            ),
        ),
    )
    yield Section(
        "MSB sparsity",
        (
            Picture(
                "sparsity",
                "Share of activations whose high digit is zero, by block and by the layers that "
                "read them.",
                sparsity,
            ),
            _sparsity_table(run),
        ),
    )


def detail_tables(run: RunFile) -> Iterator[Table]:
    """The accelerator, and every layer."""
    fields = asdict(run.accelerator)
    yield Table(
        name="accelerator",
        title="Accelerator",
        columns=(Column("field", "field"), Column("value", "value", _plain, True)),
        rows=tuple({"field": name, "value": value} for name, value in fields.items()),
        folded=True,
    )
    yield from (_layer_table(phase) for phase in run.phases)


def _part(phase: Phase, part: str, scheme: str) -> Any:
    return phase.data[part][scheme]


def _cost_rows(run: RunFile, phase: Phase) -> Iterator[dict[str, Any]]:
    array = phase.data["mma_cycles"]
    yield {
        "part": f"{phase.name}, MAC array alone",
        "dense_seconds": run.accelerator.seconds(array["dense"]),
        "sparqle_seconds": run.accelerator.seconds(array["sparqle"]),
        "cycles_reduction": reduction(array["dense"], array["sparqle"]),
    }
    for part, name in _PARTS:
        dense, split = _part(phase, part, "dense"), _part(phase, part, "sparqle")
        yield {
            "part": f"{phase.name}, {name}",
            "dense_seconds": run.accelerator.seconds(dense["cycles"]),
            "sparqle_seconds": run.accelerator.seconds(split["cycles"]),
            "cycles_reduction": reduction(dense["cycles"], split["cycles"]),
            "dense_dram_bytes": dense["dram_bytes"],
            "sparqle_dram_bytes": split["dram_bytes"],
            "dram_bytes_reduction": reduction(dense["dram_bytes"], split["dram_bytes"]),
        }


def _bounds_table(run: RunFile) -> Table:
    rows = [
        {
            "part": f"{phase.name}, {name}",
            **{
                f"{scheme}_{bound}_bound_share": _part(phase, part, scheme)[f"{bound}_bound_share"]
                for scheme in ("dense", "sparqle")
                for bound in ("compute", "memory")
            },
        }
        for phase in run.phases
        for part, name in _PARTS
    ]
    return Table(
        name="bounds",
        title="What limits the time: share of the cycles in ops bound by",
        columns=(
            Column("part", ""),
            Column("dense_compute_bound_share", "compute, dense", formats.percent, True),
            Column("dense_memory_bound_share", "memory, dense", formats.percent, True),
            Column("sparqle_compute_bound_share", "compute, split", formats.percent, True),
            Column("sparqle_memory_bound_share", "memory, split", formats.percent, True),
        ),
        rows=tuple(rows),
    )


def _how(run: RunFile) -> str:
    how = {
        "simulator": "The dense layers ran as programs on the cycle-level simulator, which "
        "computed the logits too.",
        "analytical": "The dense layers are counted in closed form from the bitmaps of this text.",
    }[run.data["engine"]]
    how = (
        f"Prefill is {run.prefill.tokens} tokens at once, decode one token after "
        f"{run.decode.past}. {how}"
    )
    left_out = run.data["uncounted"]
    if left_out:
        how += f" Not counted, because their weights are not integers: {', '.join(left_out)}."
    return how


def _sparsity_table(run: RunFile) -> Table:
    return Table(
        name="sparsity",
        title="By type of layer",
        columns=(
            Column("kind", "layers that read it"),
            Column("windows", "window", ", ".join),
            Column("layers", "tensors", str, True),
            Column("macs_share", "share of MACs", formats.percent, True),
            Column("mean", "mean", formats.percent, True),
            Column("lowest", "lowest", formats.percent, True),
            Column("highest", "highest", formats.percent, True),
        ),
        rows=tuple(run.data["msb_sparsity"]["kinds"]),
        note="Window: which values have no high digit; signed, -8 to 7; unsigned, 0 to 15.",
    )


def _layer_table(phase: Phase) -> Table:
    rows = []
    for layer in phase.layers:
        row: dict[str, Any] = {
            key: getattr(layer, key) for key in ("label", "m", "n", "k", "msb_sparsity")
        }
        dense, split = layer.costs["dense"], layer.costs["sparqle"]
        for name, cost in (("dense", dense), ("sparqle", split)):
            row |= {
                f"{name}_cycles": cost.total_cycles,
                f"{name}_dram_bytes": cost.dram_bytes,
                f"{name}_bound": cost.bound,
            }
        row["cycles_reduction"] = reduction(dense.total_cycles, split.total_cycles)
        rows.append(row)
    return Table(
        name=f"{phase.name}_layers",
        title=f"Every dense layer of the {phase.name}",
        columns=(
            Column("label", "layer"),
            Column("m", "rows", formats.grouped, True),
            Column("n", "outputs", formats.grouped, True),
            Column("k", "inputs", formats.grouped, True),
            Column("msb_sparsity", "MSB sparsity", formats.percent, True),
            Column("dense_cycles", "cycles, dense", formats.grouped, True),
            Column("sparqle_cycles", "split", formats.grouped, True),
            Column("cycles_reduction", "change", formats.change, True),
            Column("dense_dram_bytes", "DRAM, dense", formats.nbytes, True),
            Column("sparqle_dram_bytes", "split", formats.nbytes, True),
            Column("dense_bound", "bound, dense"),
            Column("sparqle_bound", "split"),
        ),
        rows=tuple(rows),
        folded=True,
    )


def _plain(value: Any) -> str:
    return formats.grouped(value) if isinstance(value, int) and value > 9999 else str(value)
