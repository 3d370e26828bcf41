"""Tables of passes: what they cost under each scheme, what limits them, where energy goes.

A run has two passes, an estimate is one; the same tables show both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Table
from sparqle_tvm.results.passes import (
    BASELINE,
    PARTS,
    Other,
    PartCost,
    PassResult,
    layer_type,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import scheme_name
from sparqle_tvm.target.cost.limits import LIMITS

LIMIT_NAMES = {
    "array": "array",
    "waiting_rows": "waiting rows",
    "weights": "weights",
    "activations": "activations",
    "kv_cache": "KV cache",
    "descriptors": "descriptors",
    "drain": "drain",
    "encode": "encode",
    "vector": "vector unit",
    "fill": "fill",
}
"""Names of `target.cost.limits.LIMITS` for readers."""

Row = dict[str, Any]

FORMULA, SIMULATOR = "by formula", "by simulator"
"""How figures were counted, for readers."""


def counted_by(engine: str) -> str:
    """``simulator`` or ``analytical`` for readers."""
    return SIMULATOR if engine == "simulator" else FORMULA


def cost_tables(passes: Sequence[PassResult], accelerator: Accelerator) -> Iterator[Table]:
    """What passes cost, what limits them, what there is besides dense layers, what is left dense.

    Runs, analyses and estimates show the same.
    """
    yield cost_table(passes, accelerator)
    yield limits_table(passes, accelerator)
    yield others_table(passes, accelerator)
    yield from left_dense_tables(passes)


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


def figure(key: str, title: str, show: Callable[[Any], str], **more: Any) -> Column:
    """A column of numbers."""
    return Column(key, title, show, numeric=True, **more)


def saving(key: str, title: str = "saved") -> Column:
    """A column of shares that are saved."""
    return figure(key, title, formats.percent, saving=True)


def cost_table(passes: Sequence[PassResult], accelerator: Accelerator) -> Table:
    """Cycles, time, DRAM traffic and energy, and what is saved of the baseline's."""
    rows: list[Row] = []
    for one in passes:
        for scheme, found in one.schemes.items():
            rows.append(
                {
                    "part": f"{one.name}: MAC array alone",
                    "scheme": scheme_name(accelerator, scheme),
                    "cycles": found.mma_cycles,
                    "seconds": accelerator.seconds(found.mma_cycles),
                    "cycles_saved": None if scheme == BASELINE else found.mma_saved,
                }
            )
        rows += _rows((one,), accelerator, _costs)
    return Table(
        name="costs",
        title=f"Cost by scheme, and what it saves of the {BASELINE} baseline (two dense passes on "
        "the same array)",
        columns=(
            Column("part", ""),
            Column("scheme", "scheme"),
            figure("cycles", "cycles", formats.grouped),
            figure("seconds", "time", formats.seconds),
            saving("cycles_saved"),
            figure("dram_bytes", "DRAM", formats.nbytes),
            saving("dram_bytes_saved"),
            figure("joules", "energy", formats.joules),
            saving("energy_saved"),
        ),
        rows=tuple(rows),
        note="The MAC array alone is what would remain if memory were free. Dense layers include "
        "the quantization and encoding of their inputs; the whole model adds attention, and norms, "
        "rotary embedding, SwiGLU, residuals and the key-value cache on the vector unit.",
        group="part",
    )


def limits_table(passes: Sequence[PassResult], accelerator: Accelerator) -> Table:
    """Cycles that each of `LIMITS` takes, and their share of the time: a row for each."""
    columns = [Column("part", ""), Column("limit", "", LIMIT_NAMES.__getitem__)]
    for scheme in passes[0].schemes:
        name = scheme_name(accelerator, scheme)
        columns += [
            figure(f"{name}_cycles", name, formats.count),
            figure(f"{name}_share", "share", formats.percent),
        ]
    return Table(
        name="limits",
        title="What limits the time, in cycles that add up to it",
        columns=tuple(columns),
        rows=tuple(
            row for one in passes for part in PARTS for row in _limit_rows(one, part, accelerator)
        ),
        note="The busiest engine of an op counts with all its cycles (array with rows that wait, "
        "DRAM channel by what it moves, drain); the rest is what it waits for. Activations: "
        "outputs too. Fill: before the array's first cycle and after its last.",
        group="part",
        repeated=2,
    )


WHERE = {"attention": "array", "vector": "vector unit"}
"""Who does what is neither a dense layer nor an encoding, by `Other.part`."""


def others_table(passes: Sequence[PassResult], accelerator: Accelerator) -> Table:
    """What the whole model has besides dense layers: cycles, and their share of all."""
    columns = [Column("part", ""), Column("work", ""), Column("unit", "on")]
    for scheme in passes[0].schemes:
        name = scheme_name(accelerator, scheme)
        columns += [
            figure(f"{name}_cycles", name, formats.count),
            figure(f"{name}_share", "share", formats.percent),
        ]
    return Table(
        name="others",
        title="Besides dense layers, in cycles and as a share of the whole model",
        columns=tuple(columns),
        rows=tuple(row for one in passes for row in _other_rows(one, accelerator)),
        note="Attention on the array is that of its programs or of their formula; the vector unit "
        "counts by formula: its operations beside one pass of its tensors through DRAM.",
        group="part",
        repeated=2,
    )


def _other_rows(one: PassResult, accelerator: Accelerator) -> Iterator[Row]:
    """A row for each kind of work: attention on the array together, of all its layers."""
    found = [other for other in one.others if other.part in WHERE]
    parts = dict.fromkeys((other.part, other.label) for other in found if other.part == "vector")
    kinds: list[tuple[str, str, list[Other]]] = []
    on_array = [other for other in found if other.part == "attention"]
    if on_array:
        kinds.append(("attention", "attention", on_array))
    kinds += [
        (part, label, [o for o in found if (o.part, o.label) == (part, label)])
        for part, label in parts
    ]
    for part, label, group in kinds:
        row: Row = {"part": one.name, "work": label, "unit": WHERE[part]}
        for scheme, cost in one.schemes.items():
            cycles = sum(other.times * other.costs[scheme].total_cycles for other in group)
            name = scheme_name(accelerator, scheme)
            row[f"{name}_cycles"] = cycles
            row[f"{name}_share"] = cycles / cost.whole_model.cycles
        yield row


def _limit_rows(one: PassResult, part: str, accelerator: Accelerator) -> Iterator[Row]:
    """A row for everything that limits any scheme."""
    costs = {scheme_name(accelerator, s): found.part(part) for s, found in one.schemes.items()}
    for limit in LIMITS:
        if any(cost.limits[limit] for cost in costs.values()):
            yield {
                "part": f"{one.name}: {PARTS[part]}",
                "limit": limit,
                **{f"{name}_cycles": cost.limits[limit] for name, cost in costs.items()},
                **{f"{name}_share": cost.share(limit) for name, cost in costs.items()},
            }


def left_dense_tables(passes: Sequence[PassResult]) -> Iterator[Table]:
    """The encodings and attentions that are left dense, by kind; none if all are split."""
    rows: list[Row] = []
    for one in passes:
        encodings = [other for other in one.others if other.part in ("encode", "attention")]
        for kind in dict.fromkeys(layer_type(other.label) for other in encodings):
            mine = [other for other in encodings if layer_type(other.label) == kind]
            left = [(o.times, o.left_dense) for o in mine if o.left_dense is not None]
            if left:
                row: Row = {"part": one.name, "kind": kind, "of": sum(o.times for o in mine)}
                row["left"] = sum(times for times, _ in left)
                row["split_cycles"] = sum(times * why.split_cycles for times, why in left)
                row["dense_cycles"] = sum(times * why.dense_cycles for times, why in left)
                digits = sum(times * why.msb_sparsity for times, why in left)
                rows.append(row | {"msb_sparsity": digits / row["left"]})
    if rows:
        yield Table(
            name="left_dense",
            title="Left dense, because planes would take more time",
            columns=(
                Column("part", ""),
                Column("kind", "encoding"),
                figure("left", "left dense", formats.count),
                figure("of", "of", formats.count),
                figure("msb_sparsity", "MSB sparsity", formats.percent),
                figure("split_cycles", "cycles, split", formats.grouped),
                figure("dense_cycles", "dense", formats.grouped),
            ),
            rows=tuple(rows),
            note="Encodings with all layers that read them, and attention. Integers are stored "
            "whole and take two dense passes, in the column of the split form too; cycles and MSB "
            "sparsity are those that this was decided with.",
            group="part",
        )


def energy_table(
    passes: Sequence[PassResult],
    accelerator: Accelerator,
    table: str,
    note: str = "",
    counted: Mapping[str, str] | None = None,
) -> Table:
    """Joules and what is saved, each with its band; by scheme, how they were `counted`, if said."""
    how = {scheme_name(accelerator, scheme): text for scheme, text in (counted or {}).items()}
    return Table(
        name="energy",
        title=f"Energy with the table {table}, and the band of what has no published value",
        columns=(
            Column("part", ""),
            Column("scheme", "scheme"),
            figure("joules", "energy", formats.joules),
            figure("joules_low", "low", formats.joules),
            figure("joules_high", "high", formats.joules),
            saving("energy_saved"),
            figure("energy_saved_low", "low", formats.percent),
            figure("energy_saved_high", "high", formats.percent),
            *([Column("counted", "counted")] if how else []),
        ),
        rows=tuple(
            {**row, **({"counted": how[row["scheme"]]} if how else {})}
            for row in _rows(passes, accelerator, _energies)
        ),
        note=note,
        group="part",
    )


def components_table(passes: Sequence[PassResult], accelerator: Accelerator, table: str) -> Table:
    """Joules of the whole model by component, a column for each scheme."""
    schemes = {scheme_name(accelerator, scheme): scheme for scheme in passes[0].schemes}
    energies = [
        {name: p.schemes[s].whole_model.energy for name, s in schemes.items()} for p in passes
    ]
    return Table(
        name="components",
        title=f"Energy of the whole model by component, {table}",
        columns=(
            Column("pass", ""),
            Column("component", "", component_name),
            *(figure(f"{name}_joules", name, formats.joules) for name in schemes),
        ),
        rows=tuple(
            {
                "pass": one.name,
                "component": component,
                **{f"{name}_joules": e.components[component].mid for name, e in energy.items()},
            }
            for one, energy in zip(passes, energies, strict=True)
            for component in next(iter(energy.values())).components
        ),
        group="pass",
    )


def _rows(
    passes: Sequence[PassResult], accelerator: Accelerator, figures: Callable[[PartCost], Row]
) -> Iterator[Row]:
    """A row for each pass, part and scheme; the baseline saves nothing, and shows nothing."""
    for one in passes:
        for part, name in PARTS.items():
            for scheme, found in one.schemes.items():
                row = {
                    "part": f"{one.name}: {name}",
                    "scheme": scheme_name(accelerator, scheme),
                    **figures(found.part(part)),
                }
                if scheme == BASELINE:
                    row = {key: None if "saved" in key else row[key] for key in row}
                yield row


def _costs(part: PartCost) -> Row:
    saved = part.saved
    return {
        "cycles": part.cycles,
        "seconds": part.seconds,
        "dram_bytes": part.dram_bytes,
        "joules": part.energy.joules.mid,
        "cycles_saved": saved and saved.cycles,
        "dram_bytes_saved": saved and saved.dram_bytes,
        "energy_saved": saved and saved.energy.mid,
    }


def _energies(part: PartCost) -> Row:
    joules, saved = part.energy.joules, part.saved
    return {
        "joules": joules.mid,
        "joules_low": joules.low,
        "joules_high": joules.high,
        "energy_saved": saved and saved.energy.mid,
        "energy_saved_low": saved and saved.energy.low,
        "energy_saved_high": saved and saved.energy.high,
    }


def component_name(name: str) -> str:
    """Name of a component of energy for readers."""
    return "DRAM" if name == "dram" else name.replace("_", " ")
