"""An accelerator looked at: peak rates, what fits, tiles, and what is out of balance.

Warnings rest on estimates of a model, not on rules of thumb: a field is named if what it limits
takes a good part of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparqle_tvm.models.shapes import ModelShape, WeightFormat
from sparqle_tvm.models.sparsity import MEASURED, msb_distribution
from sparqle_tvm.results.passes import BASELINE, PHASES, Phase
from sparqle_tvm.results.target import ChosenTile, Rate, TargetCheck
from sparqle_tvm.studies.estimate import COMPARED, estimate
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.schedule import buffer_needs
from sparqle_tvm.target.cost.tiling import choose_schedules
from sparqle_tvm.target.joint_op import joined

INT4 = WeightFormat(4)
"""Weights in `rates`, as most models are stored."""
_PASSES = 2
"""Digit products of an int8 activation and an int4 weight."""
_LAYER = "gate_up"
"""Dense layers whose tiles are shown: the largest of a block."""
_MEMORY = ("weights", "activations", "kv_cache")
_LIMITS: tuple[tuple[tuple[str, ...], float, str], ...] = (
    (
        _MEMORY,
        0.5,
        "prefill waits for DRAM {share} of its time: raise dram_bytes_per_cycle or the buffers, "
        "or the array is larger than the memory can feed",
    ),
    (
        ("descriptors",),
        0.1,
        "descriptors take {share} of a prefill: lower dma_descriptor_cycles, or raise the buffers "
        "so that tiles grow",
    ),
    (("drain",), 0.15, "the drain takes {share} of a prefill: raise drain_elements_per_cycle"),
    (
        ("vector",),
        0.25,
        "the vector unit takes {share} of a prefill: raise vector_lanes, or vector_macs_per_cycle "
        "if it computes attention",
    ),
    (("fill",), 0.15, "fill and tail take {share} of a prefill: smaller arrays start sooner"),
)
"""Limits of a prefill, the share of time from which on they are a warning, and the warning."""


def check_target(
    target: str | Accelerator, model: str | ModelShape = "llama2-7b", *, seq: int = 2048
) -> TargetCheck:
    """Look at an accelerator.

    Parameters
    ----------
    target : str or Accelerator
        A preset, an accelerator file, or an accelerator.
    model : str or ModelShape
        What its balance is judged by, as `studies.estimate.estimate` takes it.
    seq : int
        Tokens of the prefill, and in the cache before the decode.

    Raises
    ------
    TargetError, InvalidArgumentError
        As `studies.estimate.estimate`.
    """
    accelerator = Accelerator.from_target(target)
    found = {
        phase: estimate(model, phase, seq=seq, target=accelerator, schemes=COMPARED)
        for phase in PHASES
    }
    shape = found["prefill"].model
    limits: dict[Phase, Mapping[str, float]] = {}
    for phase, one in found.items():
        whole = one.schemes[BASELINE].whole_model
        limits[phase] = {limit: whole.share(limit) for limit in whole.limits}
    return TargetCheck(
        accelerator=accelerator,
        model=shape.name,
        seq=seq,
        rates=tuple(rates(accelerator, shape.embed)),
        tiles=tuple(_tiles(shape, accelerator, seq)),
        limits=limits,
        warnings=tuple(_warnings(limits["prefill"])),
    )


def decode_rows(accelerator: Accelerator, weights: WeightFormat = INT4) -> int:
    """Rows from which on a dense layer takes longer on the array than its weights from DRAM.

    ``rows * n * k * 2 * slices / macs_per_cycle > n * k * weight_bytes / dram_bytes_per_cycle``.
    The array takes rows in groups as large as it is, and fewer in as many of its rows as they can
    share (`Accelerator.rows_share_k`). A decode of fewer sequences waits for weights, which split
    activations do not change.
    """
    a = accelerator
    passes = _PASSES * -(-weights.bits // a.digit_bits)
    balance = a.macs_per_cycle * weights.bytes_per_weight / passes / a.dram_bytes_per_cycle
    if balance >= a.rows:
        return int(balance // a.rows) * a.rows + 1
    shared = (m for m in range(1, a.rows) if a.rows / (a.rows // m) > balance)
    return next(shared, a.rows) if a.rows_share_k else 1


def rates(accelerator: Accelerator, k: int) -> Iterator[Rate]:
    """Peak rates, what fits for layers of `k` inputs, and where rates balance."""
    a, bits = accelerator, accelerator.activation_bits
    yield Rate(
        *("macs_per_cycle", a.macs_per_cycle, "products/cycle"),
        f"products of {a.digit_bits}-bit digits: rows x cols x lanes",
    )
    yield Rate("peak_macs_per_second", a.peak_macs_per_second, "products/s", "at the clock")
    yield Rate(
        *("dense_macs_per_second", a.peak_macs_per_second / _PASSES, "MACs/s"),
        f"int{bits} activations times int{a.digit_bits} weights in two dense passes",
    )
    yield Rate("dram_bytes_per_second", a.dram_bytes_per_second, "B/s", "DRAM, both ways")
    yield Rate(
        *("balance_macs_per_byte", a.macs_per_cycle / _PASSES / a.dram_bytes_per_cycle, "MACs/B"),
        "layers with fewer MACs for a byte of DRAM wait for the memory",
    )
    yield Rate(
        *("balance_rows", decode_rows(a), "rows"),
        "a decode of fewer sequences waits for its int4 weights, and split precision saves "
        f"hardly any time in dense layers; the array takes {a.rows} rows at a time",
    )
    yield Rate(
        *("drain_balance_k", a.rows * a.cols * a.lanes / _PASSES / a.drain_elements_per_cycle),
        *("inputs", "layers with fewer inputs wait for the drain under dense"),
    )
    yield Rate(
        "onchip_bytes",
        a.onchip_bytes,
        "B",
        "of all buffers, one memory" if a.scratchpad else "of the three buffers together",
    )
    for word, each, what in (
        ("activation", k * bits / 8, f"activation rows of {k:,} inputs that fit, as int{bits}"),
        ("weight", k * INT4.bytes_per_weight, f"output channels of {k:,} inputs that fit, as int4"),
        ("accumulator", 4, "int32 sums that fit"),
    ):
        alone = "alone in it" if a.scratchpad else f"in its buffer of {a.memory_bytes(word):,} B"
        yield Rate(f"{word}_fits", int(a.memory_bytes(word) / each), "", f"{what}, {alone}")


def _tiles(shape: ModelShape, accelerator: Accelerator, seq: int) -> Iterator[ChosenTile]:
    stored = 1 - msb_distribution(MEASURED, accelerator.digit_bits).msb_sparsity(_LAYER)
    for phase in PHASES:
        rows = seq if phase == "prefill" else 1
        ops = joined(shape.readers(_LAYER, rows, accelerator.digit_bits))
        for scheme in COMPARED:
            (decisions, *_) = choose_schedules(ops, accelerator, scheme, stored)
            needs = buffer_needs(ops[0], accelerator, decisions)
            yield ChosenTile(
                phase=phase,
                layer=_LAYER,
                scheme=scheme,
                m=ops[0].m,
                n=ops[0].n,
                k=ops[0].k,
                decisions=decisions,
                onchip_bytes=sum(needs.values()),
            )


def _warnings(limits: Mapping[str, float]) -> Iterator[str]:
    for names, most, text in _LIMITS:
        share = sum(limits[name] for name in names)
        if share > most:
            yield text.format(share=f"{share:.0%}".replace("%", " %"))
