"""What `sparqle run` measures and counts, as data with a JSON form that is read back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparqle_tvm.errors import InvalidArgumentError, ResultFileError
from sparqle_tvm.files import (
    Amount,
    Count,
    Positive,
    Share,
    read_json,
)
from sparqle_tvm.results.form import Form, Stored
from sparqle_tvm.results.losses import KvChoice, RunLoss
from sparqle_tvm.results.passes import PassResult
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.block_rows import Balance
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.model import Counting
from sparqle_tvm.target.cost.vector import TransformerShape

KIND = "run"


@dataclass(frozen=True)
class ModelFile:
    """Name of a model, and SHA-256 of its file."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Text:
    """Where a text came from, and how many tokens of it were run."""

    name: str
    tokens: Positive


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
    window_reason : str
        Why the encoding has that window.
    row_density : tuple of float
        Quantile function of the share of stored digits per row, at even points from 0 to 1.
    """

    label: str
    kind: str
    consumers: tuple[str, ...]
    window: str
    msb_sparsity: Share
    macs: Positive
    window_reason: str = ""
    row_density: tuple[Share, ...] = ()


@dataclass(frozen=True)
class KindSparsity:
    """MSB sparsity over all layers of one type; the mean is weighted by MACs."""

    kind: str
    windows: tuple[str, ...]
    layers: Positive
    mean: Share
    lowest: Share
    highest: Share
    macs_share: Share


@dataclass(frozen=True)
class MsbSparsity:
    """MSB sparsity of a run.

    Attributes
    ----------
    mean : float
        Over the dense layers of the prefill, weighted by MACs.
    kinds : tuple of KindSparsity
        Layer types in program order.
    layers : tuple of LayerSparsity
        Every encoding in program order.
    """

    mean: Share
    kinds: tuple[KindSparsity, ...]
    layers: tuple[LayerSparsity, ...]


@dataclass(frozen=True)
class SortingResult:
    """The dense layers of a prefill, rows in their own order and sorted where that was chosen.

    Attributes
    ----------
    goal : {"array", "time", "none"}
        What rows are sorted for, see `target.cost.block_rows`.
    sorted_encodings, encodings : int
        Encodings that sort their rows, and all.
    block_rows : tuple of int
        Rows that are sorted together, all sizes that occur.
    mma_cycles_in_order, mma_cycles : int
        Cycles of the array, both passes.
    layer_cycles_in_order, layer_cycles : int
        Time of the dense layers with their encodings.
    """

    goal: Balance
    sorted_encodings: Count
    encodings: Count
    block_rows: tuple[Count, ...]
    mma_cycles_in_order: Count
    mma_cycles: Count
    layer_cycles_in_order: Count
    layer_cycles: Count


@dataclass(frozen=True)
class BeforeAfter:
    """A count with the default schedules, and with tuned ones."""

    default: Count
    tuned: Count


@dataclass(frozen=True)
class PhaseGain:
    """Cycles and DRAM bytes of the dense layers of a pass in split form."""

    cycles: BeforeAfter
    dram_bytes: BeforeAfter

    @classmethod
    def of(cls, default: PassResult, tuned: PassResult) -> PhaseGain:
        """Compare two passes."""
        before, after = (p.schemes["sparqle"].dense_layers for p in (default, tuned))
        return cls(
            BeforeAfter(before.cycles, after.cycles),
            BeforeAfter(before.dram_bytes, after.dram_bytes),
        )


@dataclass(frozen=True)
class TuningGain:
    """What the schedules of a tuning database (its folder) bring, on the bitmaps of the run."""

    database: str
    prefill: PhaseGain
    decode: PhaseGain


@dataclass(frozen=True, kw_only=True)
class Measured(Stored):
    """What is known of every model that ran, whatever it came from: a run, or an analysis.

    Attributes
    ----------
    model : ModelFile
        What was run.
    accelerator, table : Accelerator, EnergyTable
        What was counted for, and what energy was counted with.
    engine : {"simulator", "analytical"}
        Whether the dense layers were simulated or counted by formula.
    exact : bool
        Whether all results are those of the form that is not split, bit for bit.
    msb_sparsity : MsbSparsity
        Where the digits are zero.
    seconds : mapping
        Wall time of the stages on the host; those of a run with float activations may have run
        beside the others.
    """

    model: ModelFile
    accelerator: Accelerator
    table: EnergyTable
    engine: Counting
    exact: bool
    msb_sparsity: MsbSparsity
    seconds: Mapping[str, Amount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        known = default_table(self.accelerator)
        for name in ("operations", "sram", "parameters"):
            if set(getattr(self.table, name)) != set(getattr(known, name)):
                raise InvalidArgumentError(f"the energy table has other {name}")
        if len({len(layer.row_density) for layer in self.msb_sparsity.layers}) > 1:
            raise InvalidArgumentError("row_density must have as many points in every layer")

    @property
    def passes(self) -> tuple[PassResult, ...]:
        """What was counted, pass by pass."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RunResult(Measured):
    """All that `sparqle run` found out about a language model and a text.

    It is exact if the logits of all tokens are those of the int8 model (with scale factors: those
    of the int8 form with the same factors).

    Attributes
    ----------
    transformer, text : TransformerShape, Text
        Sizes of the model, and what it ran on.
    perplexity : mapping
        Keys ``float``, ``int8``, ``sparqle``; ``int8_attention``, with attention alone in
        integers, if `int8` and `sparqle` have it so.
    float_kept : bool
        Whether ``float`` and ``int8_attention`` are those of an earlier run of the same file,
        tokens and code.
    kv : str
        How attention in integers stores keys and values, see `numerics.kv_cache.parse_kv`.
    kv_choice : KvChoice, optional
        The budget that chose it.
    not_on_array : str
        Why attention in integers is counted for the vector unit; empty if it is not.
    prefill, decode : PassResult
        All tokens at once; the last token after the others.
    balance : SortingResult, optional
        What sorting rows brings prefill.
    uncounted : tuple of str
        Dense layers without quantized activations (float weights): in no count.
    tuning : TuningGain, optional
        What the schedules of a tuning database bring; `prefill` and `decode` have them.
    loss : RunLoss, optional
        What scale factors lose against plain int8; None if there are none.
    """

    FORM = Form(KIND, 4, "sparqle run")

    text: Text
    transformer: TransformerShape
    perplexity: Mapping[str, Amount]
    prefill: PassResult
    decode: PassResult
    float_kept: bool = False
    kv: str = "int8"
    kv_choice: KvChoice | None = None
    not_on_array: str = ""
    balance: SortingResult | None = None
    uncounted: tuple[str, ...] = ()
    tuning: TuningGain | None = None
    loss: RunLoss | None = None

    def __post_init__(self) -> None:
        """Refuse a run whose parts do not belong together."""
        super().__post_init__()
        if set(self.perplexity) - {"int8_attention"} != {"float", "int8", "sparqle"}:
            raise InvalidArgumentError("perplexity must be that of float, int8 and sparqle")

    @property
    def passes(self) -> tuple[PassResult, PassResult]:
        """Prefill and decode."""
        return self.prefill, self.decode

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunResult:
        """Read a file that ``sparqle run --json`` wrote.

        Raises
        ------
        ResultFileError
            If there is no such file, it is not JSON, of another version, or not whole.
        """
        return cls.from_json(read_json(path, ResultFileError, "a file of sparqle run --json"), path)


def mean_sparsity(layers: Sequence[LayerSparsity]) -> float:
    """MSB sparsity of layers, 0 to 1, weighted by MACs."""
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
