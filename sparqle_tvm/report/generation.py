"""What is said about generated text."""

from __future__ import annotations

from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.attention import stored_as
from sparqle_tvm.report.document import Column, Document, Section, Table
from sparqle_tvm.report.passes import describe, figure, saving
from sparqle_tvm.results.generation import Generation
from sparqle_tvm.results.passes import BASELINE, PHASES, share_saved
from sparqle_tvm.target.cost.baselines import scheme_name

_ENGINES = {
    "simulator": "Dense layers{attention} are programs on the cycle-level simulator",
    "analytical": "Dense layers and attention are counted by formula",
}


def generation_document(found: Generation) -> Document:
    """Tokens per second, joules per token and MSB sparsity."""
    count = len(found.texts)
    kv = f" Keys and values are stored as {stored_as(found)}." if found.kv != "int8" else ""
    attention = " and attention" if found.attention == "int8" else ""
    how = _ENGINES[found.engine].format(attention=attention)
    table = Table(
        name="speed",
        title="Of the accelerator, all sequences together, whole model",
        columns=(
            figure("phase", "phase", str),
            Column("scheme", "scheme"),
            figure("tokens", "tokens", formats.grouped),
            figure("tokens_per_second", "tokens/s", "{:,.1f}".format),
            saving("cycles_saved", "time saved"),
            figure("joules_per_token", "energy per token", formats.joules),
            saving("energy_saved"),
            figure("msb_sparsity", "zero MSBs", formats.percent),
        ),
        rows=tuple(_rows(found)),
        note=f"{how}; the rest of the model is counted by formula for the vector unit. Time is "
        f"cycles at {found.accelerator.clock_ghz:g} GHz, of the accelerator and not of this "
        f"computer; energy by the table {found.table.name}. A decode step takes one token of each "
        f"sequence: dense layers run once for all, attention once for each.{kv}",
    )
    ends = ", ".join(f"{i}: {each.ended}" for i, each in enumerate(found.texts, start=1))
    return Document(
        title=f"{found.model.name} on {found.accelerator.name}, "
        f"{count} sequence{'s' * (count > 1)}",
        subtitle=f"{describe(found.accelerator)}. Ended by {ends}.",
        sections=(Section("", (table,)),),
    )


def _rows(found: Generation) -> list[dict[str, Any]]:
    rows = []
    for phase in PHASES:
        steps = found.of_phase(phase)
        for scheme in steps[0].cycles if steps else ():
            speed = found.tokens_per_second(phase, scheme)
            joules = found.joules_per_token(phase, scheme)
            row: dict[str, Any] = {
                "phase": phase,
                "scheme": scheme_name(found.accelerator, scheme),
                "tokens": found.tokens(phase),
                "tokens_per_second": speed,
                "joules_per_token": joules,
            }
            if scheme != BASELINE:
                before = found.tokens_per_second(phase, BASELINE)
                row["cycles_saved"] = share_saved(1 / before, 1 / speed)
                row["energy_saved"] = share_saved(found.joules_per_token(phase, BASELINE), joules)
                row["msb_sparsity"] = found.msb_sparsity(phase)
            rows.append(row)
    return rows
