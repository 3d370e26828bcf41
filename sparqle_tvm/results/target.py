"""What `sparqle_tvm.studies.target` finds out about an accelerator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparqle_tvm.files import Amount, Count
from sparqle_tvm.results.form import Form, Stored
from sparqle_tvm.results.passes import Phase
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.schedule import Decisions

KIND = "target check"


@dataclass(frozen=True)
class Rate:
    """A figure that follows from the fields: its name (with the unit), value, unit and meaning."""

    name: str
    value: Amount
    unit: str
    meaning: str


@dataclass(frozen=True)
class ChosenTile:
    """The schedule that is chosen for dense layers of a model.

    Attributes
    ----------
    phase : {"prefill", "decode"}
        Of the pass.
    layer : str
        What reads the encoding, see `models.shapes.LAYER_TYPES`.
    scheme : {"dense", "sparqle"}
        Under which it is chosen.
    m, n, k : int
        Rows, outputs and inputs of the layer.
    decisions : Decisions
        The tile, and what stays on chip.
    onchip_bytes : int
        Bytes of the buffers that it takes.
    """

    phase: Phase
    layer: str
    scheme: str
    m: Count
    n: Count
    k: Count
    decisions: Decisions
    onchip_bytes: Count


@dataclass(frozen=True)
class TargetCheck(Stored):
    """An accelerator looked at beside a model.

    Attributes
    ----------
    accelerator : Accelerator
        The accelerator.
    model : str
        The model, for readers.
    seq : int
        Tokens of the prefill, and in the cache before the decode.
    rates : tuple of Rate
        Peak rates, what fits, and where rates balance.
    tiles : tuple of ChosenTile
        Chosen for layers of the model.
    limits : mapping of str to mapping
        By phase: what limits the time of the whole model under ``dense``, in shares of it
        (`target.cost.limits.LIMITS`).
    warnings : tuple of str
        What is out of balance, and which field mends it.
    """

    FORM = Form(KIND, 1, "sparqle target check", "the check")

    accelerator: Accelerator
    model: str
    seq: Count
    rates: tuple[Rate, ...]
    tiles: tuple[ChosenTile, ...]
    limits: Mapping[Phase, Mapping[str, Amount]]
    warnings: tuple[str, ...]
