"""What `sparqle run` measures and counts, as plain data with a JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparqle_tvm.results.balance import BalanceResult
from sparqle_tvm.results.layers import layer_rows, other_rows
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import energy as energy_model
from sparqle_tvm.target.cost.energy import EnergyBreakdown
from sparqle_tvm.target.cost.energy_table import Band, EnergyTable
from sparqle_tvm.target.cost.model import EncodedActivation, PassCost, Totals
from sparqle_tvm.target.cost.vector import TransformerShape

if TYPE_CHECKING:
    from sparqle_tvm.studies.held_out import RunLoss

JSON_VERSION = 2


@dataclass(frozen=True)
class LayerSparsity:
    """One encoded tensor of a model and the dense layers that read it.

    Attributes
    ----------
    label : str
        Name of the encoding.
    kind : str
        Layer type, the same for all blocks: ``attn_q attn_k attn_v``.
    consumers : tuple of str
        Names of the dense layers that read it.
    window : {"signed", "unsigned"}
        Which values have no MSB digit.
    msb_sparsity : float
        Share of zero MSB digits, 0 to 1.
    macs : int
        Multiply-accumulates of the consumers.
    saturated : int
        Elements that the window clipped; 0 if exact.
    row_density : tuple of float
        Quantile function of the share of stored digits per row, at even points from 0 to 1.
    """

    label: str
    kind: str
    consumers: tuple[str, ...]
    window: str
    msb_sparsity: float
    macs: int
    saturated: int = 0
    row_density: tuple[float, ...] = ()


@dataclass(frozen=True)
class KindSparsity:
    """MSB sparsity over all layers of one type; the mean is weighted by MACs."""

    kind: str
    windows: tuple[str, ...]
    layers: int
    mean: float
    lowest: float
    highest: float
    macs_share: float


@dataclass(frozen=True)
class Comparison:
    """The same part of a model under both schemes."""

    dense: Totals
    sparqle: Totals

    @property
    def cycles_reduction(self) -> float:
        """Share of the cycles of ``dense`` that ``sparqle`` saves; negative if it needs more."""
        return reduction(self.dense.cycles, self.sparqle.cycles)

    @property
    def dram_bytes_reduction(self) -> float:
        """Share of the DRAM bytes of ``dense`` that ``sparqle`` saves."""
        return reduction(self.dense.dram_bytes, self.sparqle.dram_bytes)

    def to_json(self) -> dict[str, Any]:
        """JSON form: both schemes and the reductions."""
        schemes = {"dense": self.dense, "sparqle": self.sparqle}
        return {
            **{
                name: {**asdict(totals), "memory_bound_share": totals.memory_bound_share}
                for name, totals in schemes.items()
            },
            "reduction": {
                "cycles": self.cycles_reduction,
                "dram_bytes": self.dram_bytes_reduction,
            },
        }


@dataclass(frozen=True)
class EnergyComparison:
    """Energy of the same part of a model under both schemes."""

    dense: EnergyBreakdown
    sparqle: EnergyBreakdown

    @classmethod
    def of(cls, both: Comparison, accelerator: Accelerator, table: EnergyTable) -> EnergyComparison:
        """Energy of what was counted, by a table."""
        dense, sparqle = (
            energy_model.energy(totals.events, accelerator, table)
            for totals in (both.dense, both.sparqle)
        )
        return cls(dense, sparqle)

    @property
    def reduction(self) -> Band:
        """Share of the energy of ``dense`` that ``sparqle`` saves, with its band."""
        return energy_model.reduction(self.dense, self.sparqle)

    def to_json(self) -> dict[str, Any]:
        """JSON form: both schemes, by component, and the reduction."""
        return {
            "dense": self.dense.to_json(),
            "sparqle": self.sparqle.to_json(),
            "reduction": self.reduction.to_json(),
        }


@dataclass(frozen=True)
class PhaseResult:
    """Prefill, or the decoding of one token.

    Attributes
    ----------
    tokens, past : int
        Tokens of the pass, and tokens in the cache before it.
    msb_sparsity : float
        Weighted by MACs, over the tokens of this phase.
    dense, sparqle : PassCost
        Every op under both schemes.
    encodings : tuple of EncodedActivation
        What the dense layers of the pass read.
    """

    tokens: int
    past: int
    msb_sparsity: float
    dense: PassCost
    sparqle: PassCost
    encodings: tuple[EncodedActivation, ...]

    @property
    def dense_layers(self) -> Comparison:
        """Dense layers with the encoding of their inputs."""
        return Comparison(self.dense.dense_layers, self.sparqle.dense_layers)

    @property
    def whole_model(self) -> Comparison:
        """Dense layers, encodings and the vector unit's work."""
        return Comparison(self.dense.whole_model, self.sparqle.whole_model)

    def energy(self, accelerator: Accelerator, table: EnergyTable) -> dict[str, EnergyComparison]:
        """Energy of ``dense_layers`` and ``whole_model``, by a table."""
        return {
            "dense_layers": EnergyComparison.of(self.dense_layers, accelerator, table),
            "whole_model": EnergyComparison.of(self.whole_model, accelerator, table),
        }

    @property
    def mma_reduction(self) -> float:
        """Share of the array's cycles that is saved, memory left out."""
        return reduction(self.dense.mma_cycles, self.sparqle.mma_cycles)

    def to_json(self) -> dict[str, Any]:
        """JSON form; ``layers`` has a row for every dense layer (see `report.rows`)."""
        passes = {"dense": self.dense, "sparqle": self.sparqle}
        return {
            "tokens": self.tokens,
            "past": self.past,
            "msb_sparsity": self.msb_sparsity,
            "mma_cycles": {
                "dense": self.dense.mma_cycles,
                "sparqle": self.sparqle.mma_cycles,
                "reduction": self.mma_reduction,
            },
            "dense_layers": self.dense_layers.to_json(),
            "whole_model": self.whole_model.to_json(),
            "layers": layer_rows(self.encodings, passes),
            "others": {scheme: other_rows(cost) for scheme, cost in passes.items()},
        }


@dataclass(frozen=True)
class TuningGain:
    """What the schedules of a tuning database bring, on the bitmaps of the run.

    Attributes
    ----------
    database : str
        Its folder.
    default_prefill, default_decode : PhaseResult
        With the default schedules.
    prefill, decode : PhaseResult
        With those of the database.
    """

    database: str
    default_prefill: PhaseResult
    default_decode: PhaseResult
    prefill: PhaseResult
    decode: PhaseResult

    @property
    def phases(self) -> dict[str, tuple[PhaseResult, PhaseResult]]:
        """Default and tuned, by the name of the phase."""
        return {
            "prefill": (self.default_prefill, self.prefill),
            "decode": (self.default_decode, self.decode),
        }

    def to_json(self) -> dict[str, Any]:
        """JSON form: cycles and DRAM bytes of the dense layers of ``sparqle``."""
        return {
            "database": self.database,
            **{
                name: {
                    count: {
                        "default": getattr(default.dense_layers.sparqle, count),
                        "tuned": getattr(tuned.dense_layers.sparqle, count),
                    }
                    for count in ("cycles", "dram_bytes")
                }
                for name, (default, tuned) in self.phases.items()
            },
        }


@dataclass(frozen=True)
class RunResult:
    """All that `sparqle run` found out about a model and a text.

    Attributes
    ----------
    model_name, model_sha256 : str
        Name of the model and SHA-256 of its file.
    text_name : str
        Where the text came from.
    tokens : int
        Tokens that were run.
    transformer : TransformerShape
        Sizes of the model.
    accelerator : Accelerator
        What was counted for.
    table : EnergyTable
        What energy was counted with.
    engine : {"simulator", "analytical"}
        Whether the dense layers were simulated or counted by formula.
    exact : bool
        Whether the logits of all tokens are those of the int8 model, bit for bit (with scale
        factors: those of the int8 form with the same factors).
    perplexity : dict
        Keys ``float``, ``int8``, ``sparqle``.
    layers : tuple of LayerSparsity
        Every encoding in program order.
    prefill, decode : PhaseResult
        All tokens at once; the last token after the others.
    balance : BalanceResult, optional
        What sorting rows brings prefill.
    uncounted : tuple of str
        Dense layers without quantized activations (float weights): in no count.
    tuning : TuningGain, optional
        What the schedules of a tuning database bring; `prefill` and `decode` have them.
    loss : RunLoss, optional
        What scale factors lose against plain int8; None if there are none.
    seconds : dict
        Wall time of the steps of this run on the host.
    """

    model_name: str
    model_sha256: str
    text_name: str
    tokens: int
    transformer: TransformerShape
    accelerator: Accelerator
    table: EnergyTable
    engine: str
    exact: bool
    perplexity: dict[str, float]
    layers: tuple[LayerSparsity, ...]
    prefill: PhaseResult
    decode: PhaseResult
    balance: BalanceResult | None = None
    uncounted: tuple[str, ...] = ()
    tuning: TuningGain | None = None
    loss: RunLoss | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def _energy_of(self, phase: PhaseResult) -> dict[str, EnergyComparison]:
        return phase.energy(self.accelerator, self.table)

    @property
    def kinds(self) -> tuple[KindSparsity, ...]:
        """Layer types in program order."""
        return by_kind(self.layers)

    def to_json(self) -> dict[str, Any]:
        """JSON form: numbers, strings, lists and dictionaries only."""
        return {
            "version": JSON_VERSION,
            "model": {"name": self.model_name, "sha256": self.model_sha256},
            "transformer": asdict(self.transformer),
            "text": {"name": self.text_name, "tokens": self.tokens},
            "accelerator": asdict(self.accelerator),
            "engine": self.engine,
            "exact": self.exact,
            "perplexity": dict(self.perplexity),
            "msb_sparsity": {
                "mean": self.prefill.msb_sparsity,
                "kinds": [asdict(kind) for kind in self.kinds],
                "layers": [asdict(layer) for layer in self.layers],
            },
            "prefill": self.prefill.to_json(),
            "decode": self.decode.to_json(),
            "balance": None if self.balance is None else self.balance.to_json(),
            "energy": {
                "table": self.table.name,
                **{
                    name: {part: both.to_json() for part, both in self._energy_of(phase).items()}
                    for name, phase in (("prefill", self.prefill), ("decode", self.decode))
                },
            },
            "uncounted": list(self.uncounted),
            "tuning": None if self.tuning is None else self.tuning.to_json(),
            "loss": None if self.loss is None else self.loss.to_json(),
            "seconds": dict(self.seconds),
        }


def reduction(before: float, after: float) -> float:
    """Share of `before` that is saved; 0 if there was nothing."""
    return 1.0 - after / before if before else 0.0


def mean_sparsity(layers: Sequence[LayerSparsity]) -> float:
    """MSB sparsity weighted by MACs."""
    return sum(x.msb_sparsity * x.macs for x in layers) / sum(x.macs for x in layers)


def by_kind(layers: Sequence[LayerSparsity]) -> tuple[KindSparsity, ...]:
    """Group layers by type, in the order of the first of each."""
    all_macs = sum(layer.macs for layer in layers)
    kinds = []
    for kind in dict.fromkeys(layer.kind for layer in layers):
        members = [layer for layer in layers if layer.kind == kind]
        values = [layer.msb_sparsity for layer in members]
        kinds.append(
            KindSparsity(
                kind=kind,
                windows=tuple(sorted({layer.window for layer in members})),
                layers=len(members),
                mean=mean_sparsity(members),
                lowest=min(values),
                highest=max(values),
                macs_share=sum(layer.macs for layer in members) / all_macs,
            )
        )
    return tuple(kinds)
