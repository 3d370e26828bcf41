"""What a report adds to a run by formula: energy, other sparsities, batches and contexts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.shapes import ModelShape, WeightFormat
from sparqle_tvm.models.sparsity import MsbDistribution, of_run
from sparqle_tvm.report.comparison import comparison_table, limits_table, stored_curves
from sparqle_tvm.report.document import Column, Part, Picture, Section, Table
from sparqle_tvm.report.paper import CITATION
from sparqle_tvm.report.passes import FORMULA, counted_by, energy_table, figure
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.report.sensitivity import sensitivity_section
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import Layer, Phase
from sparqle_tvm.results.run import RunResult
from sparqle_tvm.results.sensitivity import Sensitivity
from sparqle_tvm.studies.estimate import estimate
from sparqle_tvm.studies.savings import Curve, Series, saving_curves
from sparqle_tvm.studies.sensitivity import sensitivity
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.baselines import scheme_notes
from sparqle_tvm.target.cost.energy_table import NOT_CHECKED, EnergyTable

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
PREFILL_TOKENS = (64, 512, 4096)
BATCHES = (1, 8, 64)
CONTEXTS = (512, 4096, 32768)
BATCH_OF_CONTEXTS = 8


@dataclass(frozen=True)
class RunModel:
    """The model of a run, ready for estimates with the digits that the run measured.

    All blocks of its shape have the weight format that most of their MACs have.
    """

    run: RunResult
    shape: ModelShape
    digits: MsbDistribution

    @classmethod
    def of(cls, run: RunResult) -> RunModel:
        """Take it from a run.

        Raises
        ------
        InvalidArgumentError
            If the run lacks a type of layer of a llama-family model.
        """
        digits = of_run(run.to_json(), f"this run of {run.model.name}")
        return cls(run, shape_of(run), digits)

    def estimate(
        self,
        phase: Phase,
        seq: int,
        batch: int = 1,
        *,
        both: bool = False,
        target: Accelerator | None = None,
    ) -> Estimate:
        """A pass with the run's digits, under all schemes, or only dense and split.

        `target` is by default the run's accelerator.
        """
        schemes: dict[str, Any] = {"schemes": ("dense", "sparqle")} if both else {}
        return estimate(
            self.shape,
            phase,
            seq=seq,
            batch=batch,
            msb_sparsity=self.digits,
            target=target or self.run.accelerator,
            table=self.run.table,
            **schemes,
        )

    @cached_property
    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """The two passes of the run on accelerators with one field changed."""

        def changed(phase: Phase, seq: int) -> Sensitivity:
            return sensitivity(
                self.run.accelerator,
                lambda other: self.estimate(phase, seq, both=True, target=other),
            )

        return tuple(changed(phase, seq) for phase, seq in self.lengths.items())

    @property
    def lengths(self) -> dict[Phase, int]:
        """Tokens of the run's prefill, and in the cache before its decode."""
        return {"prefill": self.run.prefill.tokens, "decode": self.run.decode.past}

    @cached_property
    def phases(self) -> tuple[Estimate, ...]:
        """The two passes of the run, under all schemes."""
        return tuple(self.estimate(phase, seq) for phase, seq in self.lengths.items())

    @cached_property
    def curves(self) -> list[Curve]:
        """Savings against MSB sparsity in both phases."""
        return [
            curve
            for phase, seq in self.lengths.items()
            for curve in saving_curves(
                self.shape,
                phase,
                seq=seq,
                target=self.run.accelerator,
                measured=self.digits,
                sparsities=SPARSITIES,
                table=self.run.table,
            )
        ]

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """Estimates over tokens of a prefill, and over batch and context of decode."""
        past, sequences = self.run.decode.past, BATCH_OF_CONTEXTS
        prefill = tuple(self.estimate("prefill", n, both=True) for n in PREFILL_TOKENS)
        batches = tuple(self.estimate("decode", past, n, both=True) for n in BATCHES)
        contexts = tuple(self.estimate("decode", n, sequences, both=True) for n in CONTEXTS)
        return (
            Series("prefill, 1 sequence", "tokens", PREFILL_TOKENS, prefill),
            Series(f"decode after {past:,}", "sequences (batch)", BATCHES, batches),
            Series(f"decode, {sequences} sequences", "tokens of context", CONTEXTS, contexts),
        )


def shape_of(run: RunResult) -> ModelShape:
    """Sizes and weight formats of the model that was run."""
    blocks = [layer for layer in run.prefill.layers if layer.block is not None]
    outputs = [layer for layer in run.prefill.layers if layer.block is None]
    return ModelShape(
        name=run.model.name,
        source="this run",
        **{name: size for name, size in asdict(run.transformer).items() if name != "kv_bits"},
        weights=_format(blocks),
        output_weights=_format(outputs or blocks),
    )


def estimate_sections(model: RunModel) -> Iterator[Section]:
    """Energy, savings against MSB sparsity, what limits the time elsewhere, and which knob next."""
    yield _energy_section(model)
    yield _savings_section(model)
    yield _limits_section(model)
    yield sensitivity_section(model.sensitivities)


def constants_table(table: EnergyTable) -> Table:
    """Every constant of an energy table with its source."""
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            **asdict(constant),
            "source": ". ".join(filter(None, (constant.source, constant.note))),
            "checked": constant.checked or NOT_CHECKED,
        }
        for name, constant in table.constants.items()
    ]
    rows += [
        {
            "name": name.replace("_", " "),
            "value": parameter.mid,
            "low": parameter.low,
            "high": parameter.high,
            "unit": parameter.unit,
            "source": f"no published value: {parameter.why}",
            "checked": "",
        }
        for name, parameter in table.parameters.items()
    ]
    return Table(
        name="energy_table",
        title=f"Energy table {table.name}: every constant and its source",
        columns=(
            Column("name", "what"),
            figure("value", "value", "{:g}".format),
            figure("low", "low", "{:g}".format),
            figure("high", "high", "{:g}".format),
            Column("unit", "unit"),
            figure("year", "year", str),
            Column("source", "source"),
            Column("checked", "checked against"),
        ),
        rows=tuple(rows),
        folded=True,
    )


def estimable(run: RunResult) -> RunModel | str:
    """The model of a run, or why nothing can be estimated for it."""
    try:
        return RunModel.of(run)
    except InvalidArgumentError as error:
        return f"Energy is not estimated for this model: {error}."


def _format(layers: list[Layer]) -> WeightFormat:
    macs: Counter[WeightFormat] = Counter()
    for layer in layers:
        macs[WeightFormat(layer.weight_bits, layer.group_size, layer.has_min)] += layer.macs
    return macs.most_common(1)[0][0]


def _energy_section(model: RunModel) -> Section:
    """The run's own schemes as it counted them, the others by formula."""
    run = model.run
    passes = [
        replace(one, schemes={**one.schemes, **counted.schemes})
        for one, counted in zip(model.phases, run.passes, strict=True)
    ]
    own = dict.fromkeys(run.prefill.schemes, counted_by(run.engine))
    counted = {**dict.fromkeys(passes[0].schemes, FORMULA), **own}
    table = energy_table(
        passes,
        run.accelerator,
        run.table.name,
        f"{scheme_notes(run.accelerator)} Bands are those of parameters without a published value. "
        "By formula: with the digits of this run, saved against dense by formula.",
        counted,
    )
    picture = Picture(
        "energy",
        f"Energy of the whole model by component, table {run.table.name}: dense and split "
        f"{counted_by(run.engine)}, the others by formula with the digits of this run. Lines: band "
        "of what has no published value.",
        lambda narrow: drawing("energy").draw_energy(passes, narrow=narrow),
    )
    return Section("Energy", (picture, table))


def _savings_section(model: RunModel) -> Section:
    published = stored_curves(model.run.accelerator)
    where = model.run.accelerator.name
    parts: list[Part] = [
        Picture(
            "savings",
            "Saved against the dense baseline, whole model, if all layers had that MSB sparsity; "
            f"stars are measured digits. Shaded: what the paper ({CITATION}) reports for its "
            "models on its own array, baseline and memory, not reproduced here. Thin lines: band "
            f"of the energy, table {model.run.table.name}.",
            lambda narrow: drawing("reduction").draw_reduction(
                [*model.curves, *(published or [])], narrow=narrow
            ),
        )
    ]
    if published:
        parts += [
            comparison_table(published, "whole_model", where),
            limits_table(published, where),
        ]
    return Section("Savings and MSB sparsity", parts)


def _limits_section(model: RunModel) -> Section:
    picture = Picture(
        "limits",
        "What takes the time of the whole model over tokens, batch and context, as a share of "
        "that of dense: the busiest engine of each op, and what it waits for. Left bars dense, "
        "right bars split.",
        lambda narrow: drawing("limits").draw_limits(model.series, narrow=narrow),
    )
    return Section("Compute or memory", (picture,))
