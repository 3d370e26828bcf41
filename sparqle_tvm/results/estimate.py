"""What `sparqle_tvm.studies.estimate` finds out: a pass by formula, with the question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparqle_tvm.files import plain
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape
from sparqle_tvm.models.sparsity import MsbDistribution
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.balance import Balance
from sparqle_tvm.target.cost.energy_table import EnergyTable

JSON_VERSION = 2


@dataclass(frozen=True)
class DigitSource:
    """Where the MSB digits of an estimate come from.

    Attributes
    ----------
    source : str
        In words.
    transferred : bool
        Measured on another model.
    layer_types : mapping of str to float
        MSB sparsity by `models.shapes.LAYER_TYPES`.
    """

    source: str
    transferred: bool
    layer_types: Mapping[str, float]

    @classmethod
    def of(cls, distribution: MsbDistribution) -> DigitSource:
        """Name it."""
        return cls(
            distribution.label,
            distribution.transferred,
            {kind: distribution.msb_sparsity(kind) for kind in LAYER_TYPES},
        )


@dataclass(frozen=True, kw_only=True)
class Estimate(PassResult):
    """A pass of a model under all schemes asked for, by formula.

    Its layers stand for all of a type (`models.shapes.LAYER_TYPES`) and one class of digits.

    Attributes
    ----------
    model : ModelShape
        The model.
    kv_bits : int
        Bits of a cached key or value.
    balance : {"array", "time", "none"}
        What rows are sorted for.
    digits : DigitSource
        Where the MSB digits come from.
    accelerator : Accelerator
        Where it runs.
    table : EnergyTable
        What energy was counted with.
    """

    model: ModelShape
    kv_bits: int
    balance: Balance
    digits: DigitSource
    accelerator: Accelerator
    table: EnergyTable

    @property
    def seq(self) -> int:
        """Tokens of a sequence: of the pass in prefill, in the cache before it in decode."""
        return self.past or self.tokens

    def to_json(self) -> dict[str, Any]:
        """JSON form; the table has every constant with its unit, source and year."""
        return {"version": JSON_VERSION, **plain(self)}
