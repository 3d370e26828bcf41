"""What `sparqle_tvm.studies.estimate` finds out: a pass by formula, with the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from sparqle_tvm.files import Share, plain
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape
from sparqle_tvm.models.sparsity import MsbDistribution
from sparqle_tvm.results.form import Form, Stored
from sparqle_tvm.results.passes import BASELINE, PassResult
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.area import array_mm2, buffers_mm2
from sparqle_tvm.target.cost.baselines import Scheme, array_of, scheme_name, scheme_notes
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.energy_table import Band, EnergyTable

KIND = "estimate"
KIND_OF_SEVERAL = "estimates"

AttentionUnit = Literal["array", "vector"]
"""Who computes attention."""


@dataclass(frozen=True)
class AttentionSource:
    """Who computes attention in an estimate, and where the share of live keys comes from.

    Attributes
    ----------
    unit : {"array", "vector"}
        The array, in integers, or the vector unit, in floats.
    reason : str
        Why the vector unit; empty for the array.
    live_keys : str
        What the share of keys whose values are needed was measured on.
    transferred : bool
        Whether there are more keys than in the longest context that was measured: the share there
        is used.
    """

    unit: AttentionUnit
    reason: str
    live_keys: str
    transferred: bool

    @property
    def note(self) -> str:
        """In a sentence."""
        if self.unit == "vector":
            return f"Attention runs on the vector unit: {self.reason}."
        note = f"Attention runs on the array, in 8 bits; live keys: {self.live_keys}"
        beyond = ", of the longest context that was measured: there are more keys here"
        return f"{note}{beyond if self.transferred else ''}."


@dataclass(frozen=True)
class DigitSource:
    """Where the MSB digits (k = `digit_bits`) of an estimate come from, in words.

    `transferred` ones were measured on another model. `layer_types` is the MSB sparsity (0 to 1) by
    `models.shapes.LAYER_TYPES`.
    """

    source: str
    transferred: bool
    digit_bits: int
    layer_types: Mapping[str, float]

    @classmethod
    def of(cls, distribution: MsbDistribution) -> DigitSource:
        """Name it."""
        return cls(
            distribution.label,
            distribution.transferred,
            distribution.digit_bits,
            {kind: distribution.msb_sparsity(kind) for kind in LAYER_TYPES},
        )


@dataclass(frozen=True)
class OtherSparsity:
    """What the whole model would save with other digits.

    Attributes
    ----------
    msb_sparsity : float
        Share of zero MSB digits, weighted by MACs.
    time_saved, energy_saved : float
        Saved shares of the baseline's.
    """

    msb_sparsity: Share
    time_saved: float
    energy_saved: float


@dataclass(frozen=True)
class TimeArea:
    """What a scheme takes of time and area, relative to the baseline's: 1 is as much.

    Attributes
    ----------
    scheme : str
        The scheme.
    part : {"array", "whole_model"}
        The array alone and the cycles it works; or array with buffers, and the whole time.
    area, time_area : Band
        Area, and its product with time. The band is that of the density of buffers.
    """

    scheme: str
    part: Literal["array", "whole_model"]
    area: Band
    time_area: Band


@dataclass(frozen=True, kw_only=True)
class Estimate(Stored, PassResult):
    """A pass of a model under all schemes asked for, by formula.

    Its layers stand for all of a type (`models.shapes.LAYER_TYPES`) and one class of digits. The
    fields are the question, as `studies.estimate.estimate` takes it; `other_sparsities` are what
    would be saved with digits around those, from dense to sparse, if asked for.
    """

    # A sensitivity may stand beside it.
    FORM = Form(
        KIND,
        6,
        "sparqle estimate",
        "the estimate",
        besides=("notes", "time_areas", "sensitivity"),
    )

    model: ModelShape
    kv_bits: int
    kv: str = "int8"
    attention: AttentionSource
    balance: Balance
    digits: DigitSource
    accelerator: Accelerator
    table: EnergyTable
    other_sparsities: tuple[OtherSparsity, ...] = ()

    @property
    def seq(self) -> int:
        """Tokens of a sequence: of the pass in prefill, in the cache before it in decode."""
        return self.past or self.tokens

    @property
    def time_areas(self) -> tuple[TimeArea, ...]:
        """Area and time x area of every scheme against `BASELINE`; none without it."""
        if BASELINE not in self.schemes:
            return ()
        none, buffers = Band.exact(0.0), buffers_mm2(self.accelerator)
        found = []
        for scheme, cost in self.schemes.items():
            base = self.schemes[BASELINE]
            array, dense = (
                Band.exact(array_mm2(array_of(self.accelerator, cast(Scheme, s)), s))
                for s in (scheme, BASELINE)
            )
            times = {
                "array": (none, cost.mma_cycles / base.mma_cycles),
                "whole_model": (buffers, cost.whole_model.cycles / base.whole_model.cycles),
            }
            for part in ("array", "whole_model"):
                memory, time = times[part]
                area = _ratio(array + memory, dense + memory)
                found.append(TimeArea(scheme, cast(Any, part), area, area * time))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the figures, in sentences."""
        notes = [self.positions_note, self.attention.note, self.cache_note]
        waiting = [
            scheme_name(self.accelerator, scheme)
            for scheme, found in self.schemes.items()
            if found.whole_model.weight_bound
        ]
        if waiting:
            under = "" if len(waiting) == len(self.schemes) else f" under {', '.join(waiting)}"
            notes.append(
                f"Most of the time goes to waiting for weights{under}: split activations cannot "
                "help there."
            )
        notes.append(
            "Counted by formula. Bands: parameters without a published value, see the energy "
            f"table. {scheme_notes(self.accelerator)}"
        )
        return tuple(filter(None, (*notes, self.table.unchecked_note)))

    @property
    def cache_note(self) -> str:
        """How the cache is stored; empty if as int8."""
        if self.kv == "int8":
            return ""
        return (
            f"Keys and values are stored as {self.kv} (digits as measured on SmolLM2-135M); the "
            "baselines have the same integers, plain."
        )

    @property
    def positions_note(self) -> str:
        """That a sequence is longer than the model was made for; empty if it is not."""
        needed = self.past + self.tokens
        limit = self.model.max_positions
        if not limit or needed <= limit:
            return ""
        return (
            f"A sequence of {needed:,} tokens is beyond the model's {limit:,} positions: it was "
            "not made for that many."
        )

    def _derived(self) -> dict[str, Any]:
        return {"notes": list(self.notes), "time_areas": plain(self.time_areas)}


def _ratio(area: Band, base: Band) -> Band:
    """The ratio of two areas with the same buffers: the more buffers, the nearer to 1."""
    ends = sorted((area.low / base.low, area.mid / base.mid, area.high / base.high))
    return Band(*ends)
