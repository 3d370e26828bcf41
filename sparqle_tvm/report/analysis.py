"""What is said about an analysis of any module, on a terminal and in a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from sparqle_tvm.report import formats
from sparqle_tvm.report.attention import attention_sections
from sparqle_tvm.report.by_formula import constants_table
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
    components_table,
    cost_tables,
    counted_by,
    describe,
    energy_table,
    figure,
)
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.report.run import (
    detail_tables,
    roofline_picture,
    saving_cards,
    sparsity_section,
)
from sparqle_tvm.report.verdict import verdicts
from sparqle_tvm.results.analysis import Analysis
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.target.cost.baselines import scheme_notes
from sparqle_tvm.target.op import SCHEMES

_HOW = {
    "simulator": "The dense layers ran as programs on the cycle-level simulator, which computed "
    "the outputs too.",
    "analytical": "The dense layers are counted in closed form from the bitmaps of this call.",
}


def analysis_document(found: Analysis) -> Document:
    """What `sparqle run` prints about a model that is no language model."""
    attention = attention_sections(found, by_layer=False)
    parts = (*_cost_sections(found), *attention, *_sparsity_sections(found))
    return _document(found, (*parts, *_left_sections(found)))


def analysis_report(found: Analysis) -> Document:
    """The same with pictures, energy and every detail."""
    sections: list[Section] = [*_cost_sections(found)]
    for one in found.passes:
        sections += _pass_sections(found, one)
    sections += attention_sections(found)
    sections += [*_sparsity_sections(found), *_left_sections(found)]
    details: list[Part] = [_inputs_table(found)]
    if found.passes:
        details += [
            *detail_tables(found.passes, found.accelerator),
            *_programs_tables(found),
            constants_table(found.table),
        ]
    return _document(found, (*sections, Section("In detail", tuple(details))))


def _document(found: Analysis, sections: tuple[Section, ...]) -> Document:
    file = f" Model file: SHA-256 {found.model.sha256[:12]}." if found.model.sha256 else ""
    return Document(
        title=f"{found.model.name} on {found.accelerator.name}",
        subtitle=f"One call of {found.function}: {_inputs(found)}.{file} "
        f"{describe(found.accelerator)}.",
        cards=tuple(_cards(found)),
        sections=sections,
        verdict=tuple(verdicts(found.passes)),
    )


def _inputs(found: Analysis) -> str:
    """The inputs in a few words, random ones as such."""
    texts = []
    for each in found.inputs:
        shape = " x ".join(map(str, each.shape)) or "scalar"
        random = ", random" if each.source == "random" else ""
        texts.append(f"{each.name} ({shape}{random})")
    return ", ".join(texts) or "no inputs"


def _random_note(found: Analysis) -> Iterator[Part]:
    if found.seed is not None:
        yield Notice(
            f"Inputs are random (seed {found.seed}): floats are normal, integers 0 or 1. Sparsity "
            "and savings of random inputs are no measurement of the model; give real ones with "
            "--inputs."
        )


def _cards(found: Analysis) -> Iterator[Card]:
    """Exactness, sparsity and what is saved."""
    yield Card(
        "Outputs of the split form",
        "bit for bit" if found.exact else "NOT exact",
        "against the same module without split precision"
        if found.against == "module"
        else "against the same integers multiplied whole; the module as it came multiplies floats, "
        f"and differs by {found.difference:.1e}",
    )
    for one in found.passes:
        yield Card(
            "MSB sparsity",
            formats.percent(one.msb_sparsity),
            "of the high digits are zero, weighted by MACs"
            + (" (random inputs)" if found.seed is not None else ""),
        )
    yield from saving_cards(found.passes, found.table, counted_by(found.engine))


def _cost_sections(found: Analysis) -> Iterator[Section]:
    if found.call is None:
        reason = f"Nothing was rewritten, so nothing is saved: {found.why_nothing}."
        yield Section("What it costs", (Notice(reason),))
        return
    parts: list[Part] = [
        *_random_note(found),
        f"{_HOW[found.engine]} What is not a dense layer is counted by a formula for the vector "
        "unit: between two dense layers tensors stay on chip, what passes them is read and "
        f"written once. Float tensors travel at {8 * found.accelerator.float_bytes} bits.",
        *cost_tables(found.passes, found.accelerator),
    ]
    if len(found.call.schemes) > len(SCHEMES):
        notes = scheme_notes(found.accelerator)
        parts.append(f"Baselines: {notes} Those that no programs exist for count by formula.")
    if found.drained:
        parts.append(
            f"The accelerator makes {len(found.drained)} encodings as it drains the layer before; "
            "here they count as made by the vector unit under all schemes, because the baseline "
            "has no such drain."
        )
    if found.uncounted:
        names = ", ".join(found.uncounted)
        parts.append(Notice(f"Not counted, because their sizes are not known: {names}."))
    yield Section("What it costs", tuple(parts))


def _pass_sections(found: Analysis, one: PassResult) -> Iterator[Section]:
    yield Section(
        "By layer",
        (
            Picture(
                "layers",
                "MSB sparsity of what each dense layer reads, and its cycles: split as bars, the "
                "dense baseline as outlines. Of a large model the layers with most cycles.",
                lambda narrow: drawing("layers").draw_layers(one, narrow=narrow),
            ),
            roofline_picture(found.passes, found.accelerator, "call"),
        ),
    )
    yield Section(
        "Energy",
        (
            energy_table(found.passes, found.accelerator, found.table.name),
            components_table(found.passes, found.accelerator, found.table.name),
        ),
    )


def _sparsity_sections(found: Analysis) -> Iterator[Section]:
    if found.passes:
        yield sparsity_section(found)


def _left_sections(found: Analysis) -> Iterator[Section]:
    """What was rewritten, and what was left as it was."""
    done = ", ".join(f"{name} {count}" for name, count in found.rewritten.items()) or "nothing"
    parts: list[Part] = [f"Rewritten, by pass: {done}."]
    if found.left:
        parts.append(
            Table(
                name="left",
                title="What passes left as it was, and why",
                columns=(
                    Column("function", "function"),
                    Column("op", "op"),
                    Column("label", "name"),
                    Column("reason", "why"),
                    Column("pass_name", "said by"),
                ),
                rows=tuple(asdict(each) for each in found.left),
            )
        )
    yield Section("What was rewritten", tuple(parts))


def _inputs_table(found: Analysis) -> Table:
    return Table(
        name="inputs",
        title="Inputs",
        columns=(
            Column("name", "input"),
            Column("shape", "shape", lambda shape: " x ".join(map(str, shape)) or "scalar"),
            Column("dtype", "type"),
            Column("source", "values"),
        ),
        rows=tuple(asdict(each) for each in found.inputs),
        folded=True,
    )


def _programs_tables(found: Analysis) -> Iterator[Table]:
    if found.launches:
        yield Table(
            name="programs",
            title="Programs that ran, in order",
            columns=(
                Column("label", "layer"),
                figure("rows", "rows", formats.grouped),
                figure("cycles", "cycles", formats.grouped),
                figure("dram_bytes", "DRAM", formats.nbytes),
            ),
            rows=tuple(asdict(each) for each in found.launches),
            folded=True,
        )
