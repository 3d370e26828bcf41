"""The section of a report about attention: keys that are needed, and what the cache takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Part, Picture, Section, Table
from sparqle_tvm.report.passes import figure
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.results.generation import Generation
from sparqle_tvm.results.passes import Other, PassResult
from sparqle_tvm.results.run import Measured, RunResult
from sparqle_tvm.target.simulator.attention_work import AttentionCache

CONTEXTS = (512, 2048, 8192, 32768)
"""Tokens that the bytes of a cache are given for, beside those of the run."""


def stored_as(found: RunResult | Generation) -> str:
    """How keys and values are stored, and what a budget that chose it expects to lose."""
    choice = found.kv_choice
    if choice is None:
        return found.kv
    loss = choice.increase
    if loss is None:
        return f"{found.kv} (nothing smaller was measured within {choice.budget})"
    return (
        f"{found.kv} (chosen by {choice.budget}; on {loss.tokens} tokens of "
        f"{choice.calibration_text} {formats.loss(loss.perplexity_increase)} ± "
        f"{formats.loss(loss.perplexity_increase_error).lstrip('+')} against int8)"
    )


def attention_sections(run: Measured, *, by_layer: bool = True) -> Iterator[Section]:
    """What is said of attention on the array; nothing if there is none.

    With `by_layer` also what every layer needs and stores, where that was run.
    """
    passes, found = run.passes, [_attentions(one) for one in run.passes]
    if not found or not all(found):
        return
    source = "as the programs met them"
    if run.engine == "analytical":
        source = f"as {measured_attention().label}"
    parts: list[Part] = [
        "A key whose probability rounds to 0 in every row of a block is not needed: its value is "
        f"neither loaded nor multiplied, and the result has the same bits. Live keys {source}.",
        _shares_table(passes, found),
        _cache_table(found[-1], passes[-1]),
    ]
    # By formula layers are counted in classes, other ones in each pass.
    if by_layer and run.engine == "simulator":
        parts.append(
            Picture(
                "live-keys",
                "Share of the keys that blocks see whose values they need, layer by layer. Where "
                "attention is left dense, all values are multiplied.",
                lambda narrow: drawing("layers").draw_live_keys(passes, narrow=narrow),
            )
        )
        parts.append(_layers_table(passes, found))
    yield Section("Attention", parts)


def _attentions(one: PassResult) -> list[tuple[Other, AttentionCache]]:
    return [(other, other.cache) for other in one.others if other.cache is not None]


def _shares_table(
    passes: Sequence[PassResult], found: Sequence[Sequence[tuple[Other, AttentionCache]]]
) -> Table:
    """Live keys of each pass: mean, least and most of the layers."""
    rows = []
    for one, mine in zip(passes, found, strict=True):
        times = [other.times for other, _ in mine]
        live = [cache.live_keys for _, cache in mine]
        rows.append(
            {
                "pass": one.name,
                "keys": one.past + one.tokens,
                "mean": sum(t * x for t, x in zip(times, live, strict=True)) / sum(times),
                "lowest": min(live),
                "highest": max(live),
                "left_dense": sum(o.times for o, _ in mine if o.left_dense is not None),
                "layers": sum(times),
            }
        )
    return Table(
        name="live_keys",
        title="Live keys: share of the keys that blocks see whose values they need",
        columns=(
            Column("pass", ""),
            figure("keys", "keys", formats.grouped),
            figure("mean", "mean of layers", formats.percent),
            figure("lowest", "lowest", formats.percent),
            figure("highest", "highest", formats.percent),
            figure("left_dense", "left dense", str),
            figure("layers", "of", str),
        ),
        rows=tuple(rows),
        note="Layers that are left dense multiply all values: they count as 100 %.",
    )


def _cache_table(mine: Sequence[tuple[Other, AttentionCache]], one: PassResult) -> Table:
    """Bytes of the cache of all layers by context, as it is stored and in other ways."""
    sums: dict[str, float] = dict.fromkeys(("stored", "int8", "float16"), 0.0)
    for other, cache in mine:
        held = cache.key_bytes + cache.value_bytes
        sums["stored"] += other.times * (held + cache.scale_bytes)
        sums["int8"] += other.times * (cache.elements + cache.scale_bytes)
        sums["float16"] += other.times * 2 * cache.elements
    own = one.past + one.tokens
    rows = [
        {
            "context": tokens,
            **{f"{name}_bytes": round(tokens * each) for name, each in sums.items()},
            "saved": 1 - sums["stored"] / sums["int8"],
        }
        for tokens in sorted({own, *CONTEXTS})
    ]
    return Table(
        name="cache",
        title="The cache of a sequence by context, all layers",
        columns=(
            figure("context", "tokens", formats.grouped),
            figure("stored_bytes", "as stored", formats.nbytes),
            figure("int8_bytes", "plain int8", formats.nbytes),
            figure("saved", "saved of it", formats.percent),
            figure("float16_bytes", "float16", formats.nbytes),
        ),
        rows=tuple(rows),
        note=f"With scales of tokens and heads, and pointers to rows in planes; bytes of a token "
        f"are the mean of this pass's {own:,}.",
    )


def _layers_table(
    passes: Sequence[PassResult], found: Sequence[Sequence[tuple[Other, AttentionCache]]]
) -> Table:
    """Every attention: live keys by pass, planes or plain by head, bits per element."""
    columns = [Column("label", "attention")]
    for one in passes:
        columns.append(figure(f"{one.phase}_live", f"live keys, {one.phase}", formats.percent))
    bits = "{:.2f}".format
    rows = []
    for same in zip(*found, strict=True):
        other, cache = same[-1]
        row: dict[str, Any] = {"label": other.label}
        for one, (_, each) in zip(passes, same, strict=True):
            row[f"{one.phase}_live"] = each.live_keys
        row |= {
            "key_planes": cache.key_planes,
            "value_planes": cache.value_planes,
            "key_bits": 16 * cache.key_bytes / cache.elements,
            "value_bits": 16 * cache.value_bytes / cache.elements,
        }
        rows.append(row)
    return Table(
        name="attention_layers",
        title="Every attention: live keys, and how keys and values are stored",
        columns=(
            *columns,
            Column("key_planes", "keys by head"),
            figure("key_bits", "bits", bits),
            Column("value_planes", "values by head"),
            figure("value_bits", "bits", bits),
        ),
        rows=tuple(rows),
        note="By head: planes (p) or plain (-), one letter for all heads if they are alike; bits "
        "of an element with pointers, without the scale.",
        folded=True,
    )
