"""What a sweep says of every point: names, where they come from, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sparqle_tvm.errors import InvalidArgumentError, choose_from
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import BASELINE, PARTS, PartCost, Saved
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.cost.limits import LIMITS

SWEEP_SCHEMES: tuple[Scheme, ...] = ("dense", "sparqle")
"""What is estimated of every point: the baseline and the split form."""
_SHOWN = {"dense": "dense", "split": "sparqle"}
"""What columns call them."""


def _share(limit: str, part: PartCost) -> float:
    return part.share(limit)


_COSTS: Mapping[str, Callable[[PartCost], float]] = {
    "cycles": lambda part: part.cycles,
    "seconds": lambda part: part.seconds,
    "dram_bytes": lambda part: part.dram_bytes,
    "joules_low": lambda part: part.energy.joules.low,
    "joules": lambda part: part.energy.joules.mid,
    "joules_high": lambda part: part.energy.joules.high,
    **{f"{limit}_share": partial(_share, limit) for limit in LIMITS},
}
_SAVINGS: Mapping[str, Callable[[Saved], float]] = {
    "time_saved": lambda saved: saved.cycles,
    "dram_saved": lambda saved: saved.dram_bytes,
    "energy_saved": lambda saved: saved.energy.mid,
}
_SHORT = {
    "time_saved": "split_{part}_time_saved",
    "energy_saved": "split_{part}_energy_saved",
    "dram_saved": "split_{part}_dram_saved",
    "seconds": "split_{part}_seconds",
    "joules": "split_{part}_joules",
    "dense_seconds": "dense_{part}_seconds",
    "dense_joules": "dense_{part}_joules",
}
_DENSE_LAYERS = "dense_layers_"


@dataclass(frozen=True)
class Quantity:
    """A figure that a pivot shows, or whose level is looked for.

    Attributes
    ----------
    name : str
        As it was asked for.
    column : str
        Its column in the table of a sweep.
    """

    name: str
    column: str

    @property
    def unit(self) -> str:
        """``share``, ``seconds``, ``joules``, ``bytes`` or ``cycles``."""
        if self.column.endswith(("_saved", "_share")) or self.column == "msb_sparsity_mean":
            return "share"
        units = ("seconds", "joules", "bytes", "cycles")
        return next(unit for unit in units if unit in self.column)

    @property
    def more_is_better(self) -> bool:
        """Whether a level is reached from below: what is saved; all else from above."""
        return self.unit == "share"

    def reached(self, value: float, level: float) -> bool:
        """Whether a value is as good as the level."""
        return value >= level if self.more_is_better else value <= level


def quantity(name: str) -> Quantity:
    """Find a figure by its short name, or by that of its column.

    ``time_saved``, ``energy_saved``, ``dram_saved``, ``seconds``, ``joules`` (of the split form),
    ``dense_seconds`` and ``dense_joules`` are of the whole model, with ``dense_layers_`` before
    them of the dense layers.

    Raises
    ------
    InvalidArgumentError
        If there is none of that name.
    """
    short = name.removeprefix(_DENSE_LAYERS)
    part = "whole_model" if short == name else "dense_layers"
    if short in _SHORT:
        return Quantity(name, _SHORT[short].format(part=part))
    if name in COLUMNS:
        return Quantity(name, name)
    raise InvalidArgumentError(
        f"value {name!r} is unknown; {choose_from(short, list(_SHORT))}, the same with "
        f"{_DENSE_LAYERS} before them, and every column of figures in the table of a sweep"
    )


def figures(found: Estimate) -> dict[str, float]:
    """Figures of an estimate under `SWEEP_SCHEMES`, by `COLUMNS`."""
    values: dict[str, float] = {"msb_sparsity_mean": found.msb_sparsity}
    for shown, scheme in _SHOWN.items():
        for name in PARTS:
            part = found.schemes[scheme].part(name)
            values |= {f"{shown}_{name}_{key}": get(part) for key, get in _COSTS.items()}
            if scheme != BASELINE:
                saved = found.saved(scheme, name)
                values |= {f"{shown}_{name}_{key}": get(saved) for key, get in _SAVINGS.items()}
    return values


COLUMNS = (
    "msb_sparsity_mean",
    *(
        f"{shown}_{part}_{key}"
        for shown, scheme in _SHOWN.items()
        for part in PARTS
        for key in (*_COSTS, *(_SAVINGS if scheme != BASELINE else ()))
    ),
)
"""Names of all figures."""
