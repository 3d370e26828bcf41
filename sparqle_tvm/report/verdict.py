"""The answer of a report in a few sentences: what is saved, why, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from sparqle_tvm.report import formats
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import BASELINE, PartCost, PassResult
from sparqle_tvm.studies.target import decode_rows

LEAST = 0.01
"""A share of the time from which on a pass is said to gain."""
_MOVED = 0.05
"""What share of the baseline's time has to wait for something else instead, for that to be said."""
_CACHE = "loading keys and values"
_WORK = {
    "the array": ("array", "waiting_rows"),
    "loading weights": ("weights",),
    "moving activations": ("activations",),
    _CACHE: ("kv_cache",),
    "the vector unit": ("vector",),
    "the drain": ("drain",),
    "encoding": ("encode",),
    "descriptors of transfers": ("descriptors",),
    "filling and emptying the array": ("fill",),
}
"""What time goes to, in a sentence, and its `target.cost.limits.LIMITS`."""


def verdicts(passes: Sequence[PassResult]) -> Iterator[str]:
    """A sentence for every pass, with the reason; nothing without a split form to compare."""
    for one in passes:
        if {BASELINE, "sparqle"} <= set(one.schemes):
            yield f"{_name(one)}: {_saved(one)}, because {_reason(one)}."


def estimate_verdicts(found: Sequence[Estimate]) -> Iterator[str]:
    """The same, from how many sequences on decode gains, and what `native` would do."""
    for one, sentence in zip(found, verdicts(found), strict=False):
        yield sentence.removesuffix(".") + _decode_gains(one)
    native = [text for one in found for text in _native_energy(one)]
    if native:
        more = " and ".join(native)
        yield f"Native (wider multipliers on the same area) saves more energy: {more}."
    if len({one.batch for one in found}) == 1 and any(one.time_areas for one in found):
        yield from _time_area(found)
    if all(one.other_sparsities for one in found):
        yield _other_sparsities(found)


def _name(one: PassResult) -> str:
    sequences = f", {one.batch:,} sequences" if one.batch > 1 else ""
    return f"{one.name[0].upper()}{one.name[1:]}{sequences}"


def _saved(one: PassResult) -> str:
    """``split precision saves 24.1 % of the time and 14.7 % of the energy``."""
    saved = one.saved("sparqle")
    time, energy = saved.cycles, saved.energy.mid
    same = one.same_tiles.get("whole_model")
    text = f"{formats.percent(energy)} of the energy"
    if same is not None and abs(same - energy) >= LEAST:
        text += f" ({formats.percent(same)} with the same tiles)"
    if time <= -0.0005:
        return f"split precision takes {formats.percent(-time)} more time and saves {text}"
    little = "next to nothing: " if time < LEAST else ""
    return f"split precision saves {little}{formats.percent(time)} of the time and {text}"


def _reason(one: PassResult) -> str:
    """What became shorter where there is a gain, else what stays."""
    dense, split = (one.schemes[s].whole_model for s in (BASELINE, "sparqle"))
    before, after = ({w: _cycles(part, w) for w in _WORK} for part in (dense, split))
    if one.saved("sparqle").cycles < LEAST:
        work = max(before, key=before.__getitem__)
        share = formats.percent(before[work] / dense.cycles)
        return f"{share} of the time goes to {work}, which does not change"
    fallen = {work: (before[work] - after[work]) / dense.cycles for work in _WORK}
    most, least = max(fallen, key=fallen.__getitem__), min(fallen, key=fallen.__getitem__)
    text = f"the wait for {most} falls {_share(before, after, most, dense)} of the baseline's time"
    if fallen[least] <= -_MOVED:
        text += f", and that for {least} rises {_share(before, after, least, dense)}"
    if most == _CACHE:
        text += "; values whose probability is 0 are not loaded, which needs no planes"
    return text


def _share(before: Mapping[str, int], after: Mapping[str, int], work: str, dense: PartCost) -> str:
    """``from 82.6 % to 50.9 %``, of the time of the baseline."""
    shares = (formats.percent(of[work] / dense.cycles) for of in (before, after))
    return f"from {' to '.join(shares)}"


def _cycles(part: PartCost, work: str) -> int:
    return sum(part.limits[limit] for limit in _WORK[work])


def _decode_gains(one: Estimate) -> str:
    """From how many sequences on, where the dense layers wait for weights."""
    dense = one.schemes[BASELINE].dense_layers
    if one.phase != "decode" or dense.share("weights") < 0.5 or not one.msb_sparsity:
        return "."
    rows = decode_rows(one.accelerator, one.model.weights)
    text = f"; its dense layers gain from about {rows:,} sequences on"
    earlier = _attention_gains(one)
    if earlier is None or not one.batch < earlier < rows:
        return f"{text}."
    return f"{text}, the whole model gains 1 % from about {earlier:,} on, by attention."


def _attention_gains(one: Estimate) -> int | None:
    """From how many sequences on the whole model saves `LEAST`; None if never.

    Dense layers take as long for a few sequences as for one, and all else, with the caches of
    which every sequence has its own, grows with them.
    """
    dense, split = (one.schemes[scheme] for scheme in (BASELINE, "sparqle"))
    rest, after = (of.whole_model.cycles - of.dense_layers.cycles for of in (dense, split))
    gain = rest - after - LEAST * rest
    if gain <= 0:
        return None
    return math.ceil(one.batch * LEAST * dense.dense_layers.cycles / gain)


def _native_energy(one: Estimate) -> Iterator[str]:
    """What `native` saves of the energy, where that is more than the split form does."""
    if {BASELINE, "native", "sparqle"} <= set(one.schemes):
        native, split = (one.saved(scheme).energy.mid for scheme in ("native", "sparqle"))
        if native - split >= LEAST:
            yield f"{formats.percent(native)} in {one.phase}"


def _time_area(found: Sequence[Estimate]) -> Iterator[str]:
    """What becomes of the saving if the array's area counts, beside `native`."""
    texts = []
    for name, scheme in (("split precision", "sparqle"), ("native", "native")):
        saved = [
            (one.phase, 1 - of.time_area.mid)
            for one in found
            for of in one.time_areas
            if of.part == "whole_model" and of.scheme == scheme
        ]
        if saved:
            each = (f"{_less(share)} in {phase}" for phase, share in saved)
            texts.append(f"{name} {' and '.join(each)}")
    if texts:
        yield f"Time x area of array and buffers: {'; '.join(texts)}."


def _other_sparsities(found: Sequence[Estimate]) -> str:
    """Which MSB sparsity the figures hold for, and what would be saved around it."""
    first = found[0]
    assumed = (" is assumed", ", of another model") if first.digits.transferred else ("", "")
    texts = []
    for around in zip(*(one.other_sparsities for one in found), strict=True):
        saved = (
            f"{one.phase} saves {formats.percent(other.time_saved)} of the time and "
            f"{formats.percent(other.energy_saved)} of the energy"
            for one, other in zip(found, around, strict=True)
        )
        texts.append(f"at {formats.percent(around[0].msb_sparsity)}, {', '.join(saved)}")
    return (
        f"MSB sparsity{assumed[0]}: {formats.percent(first.msb_sparsity)} by MACs{assumed[1]}; "
        f"{'; '.join(texts)}."
    )


def _less(share: float) -> str:
    """``12.3 % less``, ``14.9 % more`` or ``as much``."""
    if formats.percent(share) == formats.percent(0):
        return "as much"
    return f"{formats.percent(abs(share))} {'less' if share >= 0 else 'more'}"
