"""What `sparqle_tvm.studies.estimate` finds out, as plain data with a JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape
from sparqle_tvm.models.sparsity import MsbDistribution
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.analytical import EncodeCost, OpCost
from sparqle_tvm.target.cost.baselines import Scheme, scheme_name, scheme_notes
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.energy import EnergyBreakdown, reduction
from sparqle_tvm.target.cost.energy_table import Band, EnergyTable
from sparqle_tvm.target.cost.events import Events
from sparqle_tvm.target.cost.vector import VectorCost

JSON_VERSION = 1
Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)
BASELINE: Scheme = "dense"
"""What reductions are given against."""

LIMITS = ("compute", "weights", "activations", "kv_cache")
"""What limits an op: computation, or most of its bytes."""

PARTS = ("dense_layers", "whole_model")


@dataclass(frozen=True)
class LayerEstimate:
    """Layers of one type (and one class of their MSB digits), counted once.

    Attributes
    ----------
    layer_type : str
        One of `sparqle_tvm.models.shapes.LAYER_TYPES`.
    times : int
        How many layers of the model these figures stand for.
    msb_sparsity : float
        Share of zero MSB digits of their activations, 0 to 1.
    encode : EncodeCost
        Quantization and encoding of the tensor.
    ops : tuple of OpCost
        The dense layers that read it.
    """

    layer_type: str
    times: int
    msb_sparsity: float
    encode: EncodeCost
    ops: tuple[OpCost, ...]

    @property
    def costs(self) -> tuple[EncodeCost | OpCost, ...]:
        """Encoding and ops of one layer."""
        return (self.encode, *self.ops)


@dataclass(frozen=True)
class PartEstimate:
    """Sums over a part of a model.

    Attributes
    ----------
    cycles : int
        Time in clock cycles.
    seconds : float
        Time.
    dram_bytes : int
        Bytes read and written.
    macs : int
        Multiply-accumulates at full precision, of the vector unit too.
    limits : mapping of str to float
        Share of the time in ops that each of `LIMITS` limits; they add up to 1.
    events : Events
        What costs energy.
    energy : EnergyBreakdown
        Joules by component.
    """

    cycles: int
    seconds: float
    dram_bytes: int
    macs: int
    limits: Mapping[str, float]
    events: Events
    energy: EnergyBreakdown

    @property
    def compute_bound_share(self) -> float:
        """Share of the time in ops that computation limits."""
        return self.limits["compute"]

    @property
    def memory_bound_share(self) -> float:
        """Share of the time in ops that memory traffic limits."""
        return 1.0 - self.compute_bound_share

    @property
    def weight_bound(self) -> bool:
        """Most of the time goes to ops that wait for their weights."""
        return self.limits["weights"] > 0.5


@dataclass(frozen=True)
class SchemeEstimate:
    """A model under one scheme.

    Attributes
    ----------
    scheme : {"sparqle", "dense", "native", "a4"}
        How the dense layers work.
    layers : tuple of LayerEstimate
        Dense layers by type and class.
    vector : tuple of VectorCost
        The rest of the model, over all layers.
    dense_layers, whole_model : PartEstimate
        Dense layers with the encoding of their inputs; and with the vector unit's work.
    """

    scheme: Scheme
    layers: tuple[LayerEstimate, ...]
    vector: tuple[VectorCost, ...]
    dense_layers: PartEstimate
    whole_model: PartEstimate


@dataclass(frozen=True)
class Estimate:
    """A pass of a model under all schemes asked for.

    Attributes
    ----------
    model : ModelShape
        The model.
    phase : {"prefill", "decode"}
        All tokens at once, or one token of each sequence.
    seq : int
        Tokens of a sequence: of the pass in prefill, in the cache before it in decode.
    batch : int
        Sequences.
    kv_bits : int
        Bits of a cached key or value.
    balance : {"array", "time", "none"}
        What rows are sorted for.
    sparsity : MsbDistribution
        Where the MSB digits come from.
    accelerator : Accelerator
        Where it runs.
    table : EnergyTable
        What energy was counted with.
    schemes : mapping of str to SchemeEstimate
        By scheme, in the order asked for.
    """

    model: ModelShape
    phase: Phase
    seq: int
    batch: int
    kv_bits: int
    balance: Balance
    sparsity: MsbDistribution
    accelerator: Accelerator
    table: EnergyTable
    schemes: Mapping[str, SchemeEstimate]

    @property
    def tokens(self) -> int:
        """Tokens that the pass works on, of all sequences."""
        return self.batch * (self.seq if self.phase == "prefill" else 1)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the figures, in sentences."""
        notes = [self.positions_note]
        waiting = [
            scheme_name(self.accelerator, scheme)
            for scheme, found in self.schemes.items()
            if found.whole_model.weight_bound
        ]
        if waiting:
            notes.append(
                f"Most of the time goes to waiting for weights under {', '.join(waiting)}: split "
                "activations cannot help there."
            )
        notes.append(
            "Counted by formula. Bands: parameters without a published value, see the energy "
            f"table. {scheme_notes(self.accelerator)}"
        )
        return tuple(filter(None, (*notes, self.table.unchecked_note)))

    @property
    def positions_note(self) -> str:
        """That a sequence is longer than the model was made for; empty if it is not."""
        needed = self.seq if self.phase == "prefill" else self.seq + 1
        limit = self.model.max_positions
        if not limit or needed <= limit:
            return ""
        return (
            f"A sequence of {needed:,} tokens is beyond the model's {limit:,} positions: it was "
            "not made for that many."
        )

    @property
    def msb_sparsity(self) -> float:
        """MSB sparsity of all dense layers, weighted by MACs."""
        layers = next(iter(self.schemes.values())).layers
        weights = [layer.times * sum(op.macs for op in layer.ops) for layer in layers]
        sparse = sum(w * layer.msb_sparsity for w, layer in zip(weights, layers, strict=True))
        return sparse / sum(weights)

    def cycles_reduction(self, scheme: str, part: str, baseline: str = BASELINE) -> float:
        """Share of the cycles of `baseline` that a scheme saves in a part (`PARTS`)."""
        before, after = self._parts(scheme, part, baseline)
        return 1.0 - after.cycles / before.cycles

    def dram_bytes_reduction(self, scheme: str, part: str, baseline: str = BASELINE) -> float:
        """Share of the DRAM bytes of `baseline` that a scheme saves in a part."""
        before, after = self._parts(scheme, part, baseline)
        return 1.0 - after.dram_bytes / before.dram_bytes

    def energy_reduction(self, scheme: str, part: str, baseline: str = BASELINE) -> Band:
        """Share of the energy of `baseline` that a scheme saves in a part, with its band."""
        before, after = self._parts(scheme, part, baseline)
        return reduction(before.energy, after.energy)

    def _parts(self, scheme: str, part: str, baseline: str) -> tuple[PartEstimate, PartEstimate]:
        missing = {scheme, baseline} - set(self.schemes)
        if missing or part not in PARTS:
            raise InvalidArgumentError(
                f"the estimate has the schemes {', '.join(self.schemes)} and the parts "
                f"{', '.join(PARTS)}, not {', '.join(sorted(missing)) or part}"
            )
        before: PartEstimate = getattr(self.schemes[baseline], part)
        after: PartEstimate = getattr(self.schemes[scheme], part)
        return before, after

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per scheme and part: what a table or a CSV file shows.

        Energies are in joules, times in seconds, reductions and shares from 0 to 1 (against
        ``dense``, if that was asked for; else None).
        """
        common = {
            "model": self.model.name,
            "phase": self.phase,
            "seq": self.seq,
            "batch": self.batch,
            "kv_bits": self.kv_bits,
            "balance": self.balance,
            "target": self.accelerator.name,
            "energy_table": self.table.name,
            "msb_sparsity_source": self.sparsity.label,
            "transferred": self.sparsity.transferred,
            "beyond_positions": bool(self.positions_note),
            "msb_sparsity": self.msb_sparsity,
        }
        return [
            {**common, "scheme": scheme, "part": part, **self._figures(scheme, part)}
            for scheme in self.schemes
            for part in PARTS
        ]

    def _figures(self, scheme: str, part: str) -> dict[str, Any]:
        figures: PartEstimate = getattr(self.schemes[scheme], part)
        joules = figures.energy.joules
        compared = BASELINE in self.schemes
        saved = self.energy_reduction(scheme, part) if compared else None
        return {
            "cycles": figures.cycles,
            "seconds": figures.seconds,
            "dram_bytes": figures.dram_bytes,
            "joules_low": joules.low,
            "joules": joules.mid,
            "joules_high": joules.high,
            "macs": figures.macs,
            **{f"{limit}_bound_share": figures.limits[limit] for limit in LIMITS},
            "memory_bound_share": figures.memory_bound_share,
            "weight_bound": figures.weight_bound,
            "cycles_reduction": self.cycles_reduction(scheme, part) if compared else None,
            "dram_bytes_reduction": self.dram_bytes_reduction(scheme, part) if compared else None,
            "energy_reduction_low": saved.low if saved else None,
            "energy_reduction": saved.mid if saved else None,
            "energy_reduction_high": saved.high if saved else None,
        }

    def to_json(self) -> dict[str, Any]:
        """JSON form: the question, `notes`, `rows`, energy by component, and the layers by type.

        ``energy_constants`` has every constant with its unit, source, year, and what it was
        checked against.
        """
        return {
            "version": JSON_VERSION,
            "model": asdict(self.model),
            "phase": self.phase,
            "seq": self.seq,
            "batch": self.batch,
            "kv_bits": self.kv_bits,
            "balance": self.balance,
            "accelerator": asdict(self.accelerator),
            "energy_table": self.table.name,
            "energy_constants": self.table.to_json(),
            "msb_sparsity": {
                "source": self.sparsity.label,
                "transferred": self.sparsity.transferred,
                "digit_bits": self.sparsity.digit_bits,
                "mean": self.msb_sparsity,
                "layer_types": {kind: self.sparsity.msb_sparsity(kind) for kind in LAYER_TYPES},
            },
            "notes": list(self.notes),
            "rows": self.rows(),
            "energy": {
                scheme: {
                    part: getattr(found, part).energy.to_json()["components"] for part in PARTS
                }
                for scheme, found in self.schemes.items()
            },
            "layers": [row for found in self.schemes.values() for row in _layer_rows(found)],
        }


def limit_of(cost: OpCost | EncodeCost | VectorCost) -> str:
    """Which of `LIMITS` limits an op: computation, or else what most of its bytes are."""
    if cost.bound == "compute":
        return "compute"
    if isinstance(cost, OpCost) and 2 * cost.weight_bytes > cost.dram_bytes:
        return "weights"
    if isinstance(cost, VectorCost) and 2 * cost.cache_bytes > cost.dram_bytes:
        return "kv_cache"
    return "activations"


def _layer_rows(found: SchemeEstimate) -> list[dict[str, Any]]:
    """One flat row per op of every layer type and class."""
    return [
        {
            "scheme": found.scheme,
            "layer_type": layer.layer_type,
            "op": cost.label if isinstance(cost, OpCost) else "encode",
            "times": layer.times,
            "msb_sparsity": layer.msb_sparsity,
            "cycles": cost.total_cycles,
            "dma_cycles": cost.dma_cycles,
            "compute_cycles": (
                cost.compute_cycles if isinstance(cost, OpCost) else cost.vector_cycles
            ),
            "dram_bytes": cost.dram_bytes,
            "macs": cost.macs if isinstance(cost, OpCost) else 0,
            "limit": limit_of(cost),
        }
        for layer in found.layers
        for cost in layer.costs
    ]
