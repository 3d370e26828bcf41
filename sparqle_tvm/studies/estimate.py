"""What split precision gives on an accelerator for a published model: seconds, joules, limits.

By formula (`sparqle_tvm.target.cost`), from the shapes of the model and a distribution of MSB
digits: no weights, no compiler, no simulation. Equal layers are counted once. All schemes are
counted with the same memory, buffers and tables, each with the tiles that are best for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sparqle_tvm.errors import (
    InvalidArgumentError,
    SparqleError,
    TargetError,
    require_known,
)
from sparqle_tvm.frontend.shape import model_shape
from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.models.shapes import LAYER_TYPES, ModelShape
from sparqle_tvm.models.sparsity import MEASURED, MsbDistribution, msb_distribution
from sparqle_tvm.numerics.kv_cache import parse_kv
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.results.counted import CountedAttention, CountedCosts, CountedEncoding, pass_result
from sparqle_tvm.results.estimate import (
    AttentionSource,
    AttentionUnit,
    DigitSource,
    Estimate,
    OtherSparsity,
)
from sparqle_tvm.results.passes import PHASES, Phase
from sparqle_tvm.studies.attention import counted_attention, written_token
from sparqle_tvm.studies.same_tiles import saved_with_same_tiles
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.attention_op import DIGIT_BITS
from sparqle_tvm.target.cost.analytical import Encoded, costs_together
from sparqle_tvm.target.cost.baselines import ALL_SCHEMES, Scheme
from sparqle_tvm.target.cost.block_rows import Balance, choose_block_rows, sorting_questions
from sparqle_tvm.target.cost.energy_table import EnergyTable, default_table
from sparqle_tvm.target.cost.scheme_choice import cheaper
from sparqle_tvm.target.cost.tiling import Question, choose_together
from sparqle_tvm.target.cost.vector import vector_costs
from sparqle_tvm.target.joint_op import joined
from sparqle_tvm.target.op import DenseOp

if TYPE_CHECKING:
    from tvm.target import Target

COMPARED: tuple[Scheme, ...] = ("dense", "sparqle")
AROUND = 0.1
"""How much sparser and denser `estimate_around` takes the MSB digits."""
MAX_COUNTS = 1 << 27
"""Counts of stored digits that are drawn for a layer, at most: they take about 1.5 GB."""


def estimate(
    model: str | os.PathLike[str] | ModelShape,
    phase: Phase,
    *,
    seq: int,
    batch: int = 1,
    msb_sparsity: str | float | os.PathLike[str] | MsbDistribution = MEASURED,
    target: str | Accelerator | Target = "sparqle/edge",
    table: EnergyTable | None = None,
    schemes: Sequence[Scheme] = ALL_SCHEMES,
    kv_bits: int = 8,
    kv: str = "int8",
    attention: AttentionUnit | None = None,
    balance: Balance = "array",
    static_watts: float | None = None,
    seed: int = 0,
    same_tiles: bool = True,
) -> Estimate:
    """Estimate a pass of a model.

    Parameters
    ----------
    model : str, path or ModelShape
        A published model, a GGUF file, a ``config.json`` of Hugging Face or its folder, or sizes of
        one's own; see `sparqle_tvm.frontend.shape.model_shape`.
    phase : {"prefill", "decode"}
        A pass over `seq` tokens of every sequence, or over one token after `seq` others.
    seq : int
        Tokens.
    batch : int
        Sequences. Their rows share the weights; keys and values are those of each sequence.
    msb_sparsity : str, float, path or MsbDistribution
        ``measured`` (on SmolLM2-135M, with digits as wide as the accelerator's), a share of zero
        MSB digits, or a JSON file; see `sparqle_tvm.models.sparsity`.
    target : str, Accelerator or tvm.target.Target
        A preset, an accelerator file (``.toml``), an accelerator or a TVM target.
    table : EnergyTable, optional
        Energy of single operations; by default 7 nm and the accelerator's memory.
    schemes : sequence of str
        What to compare.
    kv_bits : int
        Bits of a cached key or value, one of `target.cost.vector.KV_BITS`; they are stored plain.
    kv : str
        How the cache stores keys and values of attention on the array, see
        `numerics.kv_cache.parse_kv`, with digits as measured; baselines have them plain.
    attention : {"array", "vector"}, optional
        Who computes attention: the array, in integers with keys and values of 8 bits, by programs
        (`target.cost.attention`), or the vector unit, in floats. By default the array, if keys and
        values have 8 bits and digits 4, and scores of a row fit the chip.
    balance : {"array", "time", "none"}
        What rows are sorted for under ``sparqle``, see `target.cost.block_rows`.
    static_watts : float, optional
        Leakage and idle power; by default that of the table's parameter.
    seed : int
        Of the digits that are drawn.
    same_tiles : bool
        Whether to find out what is saved with the same tiles, see `results.estimate.Estimate`.

    Raises
    ------
    InvalidArgumentError
        If model, phase, scheme or sparsity are unknown, digits were measured at another width,
        `kv_bits` is none of `target.cost.vector.KV_BITS`, a number is not positive, or a power is
        negative.
    TargetError
        If the accelerator is unknown, or no tile fits its buffers.
    """
    shape, accelerator = model_shape(model), Accelerator.from_target(target)
    distribution = msb_distribution(msb_sparsity, accelerator.digit_bits)
    _check(phase, seq, batch, schemes)
    table = default_table(accelerator) if table is None else table
    tokens = seq if phase == "prefill" else 1
    past = 0 if phase == "prefill" else seq
    layers = _DenseLayers(
        *(shape, tokens, batch, distribution, accelerator, tuple(schemes), balance)
    )
    encodings = _count(layers, seed)
    mixed: list[CountedAttention] = []
    reason = _vector_reason(attention, kv_bits, accelerator)
    parse_kv(kv)
    if not reason:
        try:
            mixed = counted_attention(shape, tokens, past, batch, accelerator, schemes, seed, kv)
        except TargetError as error:
            if attention == "array":
                raise
            reason = str(error)
    if not mixed and kv != "int8":
        raise InvalidArgumentError(f"kv={kv!r} is about attention on the array: {reason}")
    transformer = shape.transformer(kv_bits)
    counted = pass_result(
        phase,
        tokens=tokens,
        past=past,
        batch=batch,
        encodings=encodings,
        vector={
            scheme: vector_costs(
                *(transformer, tokens, past, accelerator, batch),
                attention=not mixed,
                scheme=scheme,
                stored=written_token(mixed, scheme) if mixed else None,
            )
            for scheme in schemes
        },
        attention=mixed,
        accelerator=accelerator,
        table=table,
        static_watts=static_watts,
    )
    # Of the distribution itself, not of the rows that were drawn from it.
    drawn = sum(e.macs * distribution.msb_sparsity(e.type) for e in encodings)
    sparsity = drawn / sum(e.macs for e in encodings)
    saved: Mapping[str, float] = {}
    if same_tiles:
        saved = saved_with_same_tiles(encodings, counted, accelerator, table, static_watts)
    return Estimate(
        **{**vars(counted), "msb_sparsity": sparsity, "same_tiles": saved},
        model=shape,
        kv_bits=kv_bits,
        kv=kv,
        attention=AttentionSource(
            "array" if mixed else "vector",
            reason,
            measured_attention().label if mixed else "",
            bool(mixed) and measured_attention().beyond(past + tokens),
        ),
        balance=balance,
        digits=DigitSource.of(distribution),
        accelerator=accelerator,
        table=table,
    )


def estimate_around(model: str, phase: Phase, **question: Any) -> Estimate:
    """As `estimate`, with what is saved if MSB digits are denser, and sparser, by `AROUND`."""
    found = estimate(model, phase, **question)
    source = question.get("msb_sparsity", MEASURED)
    distribution = msb_distribution(source, found.accelerator.digit_bits)
    quick = {**question, "schemes": COMPARED, "same_tiles": False}
    others = []
    for share in (-AROUND, AROUND):
        other = estimate(model, phase, **{**quick, "msb_sparsity": distribution.shifted(share)})
        saved = other.saved("sparqle")
        others.append(OtherSparsity(other.msb_sparsity, saved.cycles, saved.energy.mid))
    return replace(found, other_sparsities=tuple(others))


def _vector_reason(attention: AttentionUnit | None, kv_bits: int, accelerator: Accelerator) -> str:
    """Why the vector unit computes attention; empty if the array may.

    Raises
    ------
    InvalidArgumentError
        If the array is asked for what it cannot do.
    """
    if attention is not None:
        require_known("attention", attention, get_args(AttentionUnit))
    if attention == "vector":
        return "the vector unit was asked for"
    reason = ""
    if kv_bits != 8:
        reason = f"keys and values have {kv_bits} bits, programs take 8"
    elif accelerator.digit_bits != DIGIT_BITS:
        reason = f"digits have {accelerator.digit_bits} bits, those of attention {DIGIT_BITS}"
    if reason and attention == "array":
        raise InvalidArgumentError(f"attention cannot run on the array: {reason}")
    return reason


def _check(phase: str, seq: int, batch: int, schemes: Sequence[str]) -> None:
    require_known("phase", phase, PHASES)
    for name, value in (("seq", seq), ("batch", batch)):
        if value < 1:
            raise InvalidArgumentError(f"{name} = {value} must be at least 1")
    unknown = [scheme for scheme in schemes if scheme not in ALL_SCHEMES]
    if unknown or not schemes or len(set(schemes)) < len(schemes):
        raise InvalidArgumentError(
            f"schemes = {list(schemes)} must be different ones of {', '.join(ALL_SCHEMES)}"
        )


def choose_ahead(
    passes: Iterable[tuple[Accelerator, Mapping[str, Any]]],
    *,
    schemes: Sequence[Scheme] = ALL_SCHEMES,
) -> None:
    """Choose the schedules of many estimates together, which takes much less than one by one.

    Parameters
    ----------
    passes : iterable of (Accelerator, mapping)
        The accelerator of each, and its ``model``, ``phase`` and ``seq``, and what else is not as
        by default. What has no estimate is left for `estimate` to refuse.
    schemes : sequence of str
        What they compare.
    """
    counted: list[_DenseLayers] = []
    for accelerator, given in passes:
        with suppress(SparqleError):
            counted.append(
                _DenseLayers(
                    shape=model_shape(given["model"]),
                    tokens=given["seq"] if given["phase"] == "prefill" else 1,
                    batch=given.get("batch", 1),
                    distribution=msb_distribution(
                        given.get("msb_sparsity", MEASURED), accelerator.digit_bits
                    ),
                    accelerator=accelerator,
                    schemes=tuple(schemes),
                    balance=given.get("balance", "array"),
                )
            )
    choose_together(question for layers in counted for question in layers.questions())
    asked: list[Question] = []
    for layers in counted:
        with suppress(SparqleError):
            asked += [layers.question(kind) for kind in layers.readers]
    choose_together(asked)


@dataclass(frozen=True)
class _DenseLayers:
    """What of an estimate its dense layers depend on."""

    shape: ModelShape
    tokens: int
    batch: int
    distribution: MsbDistribution
    accelerator: Accelerator
    schemes: tuple[Scheme, ...]
    balance: Balance

    @cached_property
    def shapes(self) -> dict[str, tuple[DenseOp, ...]]:
        """The ops that read an encoding, by the type of layer."""
        return {
            kind: self.shape.readers(
                kind,
                self.batch * (1 if kind == "output" else self.tokens),
                self.accelerator.digit_bits,
            )
            for kind in LAYER_TYPES
        }

    @cached_property
    def readers(self) -> dict[str, tuple[DenseOp, ...]]:
        """The same, as they run."""
        return {kind: joined(ops) for kind, ops in self.shapes.items()}

    @property
    def baselines(self) -> list[Scheme]:
        """What is counted besides split precision."""
        found: list[Scheme] = [scheme for scheme in self.schemes if scheme != "sparqle"]
        # Split precision is held to dense, asked for or not.
        return found if "dense" in found or "sparqle" not in self.schemes else [*found, "dense"]

    def questions(self) -> list[Question]:
        """What schedules of the baselines, and the rows that are sorted together, depend on."""
        found = [
            Question(ops, self.accelerator, scheme)
            for ops in self.readers.values()
            for scheme in self.baselines
        ]
        if "sparqle" in self.schemes and self.balance != "none":
            for kind, ops in self.readers.items():
                found += sorting_questions(ops, self.accelerator, self.density(kind))
        return found

    def density(self, kind: str) -> float:
        """Share of stored digits to expect."""
        return 1.0 - self.distribution.msb_sparsity(kind)

    def block_rows(self, kind: str) -> int:
        """Rows that are sorted together."""
        return choose_block_rows(
            self.readers[kind], self.accelerator, self.balance, self.density(kind)
        )

    def question(self, kind: str) -> Question:
        """What the schedules of split precision depend on."""
        block = self.block_rows(kind)
        ops = tuple(replace(op, block_rows=block) for op in self.readers[kind])
        return Question(ops, self.accelerator, "sparqle", self.density(kind))


def _count(layers: _DenseLayers, seed: int) -> list[CountedEncoding]:
    """Count all layers: one for each class of digits, which the baselines share."""
    shape, distribution, accelerator = layers.shape, layers.distribution, layers.accelerator
    schemes, shapes, baselines = layers.schemes, layers.shapes, layers.baselines
    choose_together(layers.questions())
    asked: list[Encoded] = []
    counted: list[tuple[CountedEncoding, RowNnz, dict[str, int]]] = []
    for kind, readers in layers.readers.items():
        classes = distribution.layer_counts(kind, shape.times(kind))
        drawn = _draw(kind, readers, len(classes), distribution, accelerator, seed)
        # A baseline takes no more from the digits than how many rows and columns there are.
        rows, k = readers[0].m, readers[0].k
        nothing = RowNnz(np.zeros((rows, 1), dtype=np.int32), k, k)
        block = 0
        if "sparqle" in schemes:
            block = layers.block_rows(kind)
        numbers: dict[str, int] = {}
        for scheme in baselines:
            numbers[scheme] = len(asked)
            asked.append(Encoded(kind, nothing, readers, scheme))
        density = layers.density(kind)
        for nnz, times in zip(drawn, classes, strict=True):
            if "sparqle" in schemes:
                numbers = {**numbers, "sparqle": len(asked)}
                asked.append(Encoded(kind, nnz, readers, "sparqle", block, density=density))
            encoding = CountedEncoding(
                label=kind,
                window="",
                msb_sparsity=nnz.msb_sparsity,
                shapes=shapes[kind],
                costs={},
                type=kind,
                times=times,
                block_rows=block,
            )
            counted.append((encoding, nnz, numbers))
    costs = costs_together(asked, accelerator)
    done = []
    for encoding, nnz, numbers in counted:
        found: dict[str, CountedCosts] = {scheme: costs[i] for scheme, i in numbers.items()}
        left, block = None, encoding.block_rows
        if "sparqle" in schemes:
            split, dense = (costs[numbers[scheme]] for scheme in ("sparqle", "dense"))
            left = cheaper(split, dense, nnz, accelerator.digit_bits)
        if left is not None:
            found["sparqle"], block = found["dense"], 0
        wanted: dict[str, CountedCosts] = {scheme: found[scheme] for scheme in schemes}
        done.append(replace(encoding, costs=wanted, left=left, block_rows=block))
    return done


def _draw(
    kind: str,
    readers: Sequence[DenseOp],
    classes: int,
    distribution: MsbDistribution,
    accelerator: Accelerator,
    seed: int,
) -> Iterator[RowNnz]:
    """Stored digits of the layers of a type, for each of its classes."""
    rows, k, group = readers[0].m, readers[0].k, max(readers[0].group_size, 1)
    unit = math.lcm(8, accelerator.lanes, group)
    if rows * -(-k // unit) > MAX_COUNTS:
        raise InvalidArgumentError(
            f"a pass of {rows:,} rows through layers of {k:,} inputs takes too much memory to "
            f"count; take at most {MAX_COUNTS * unit // k:,} tokens of all sequences together"
        )
    return (distribution.draw(kind, which, rows, k, unit, seed) for which in range(classes))
