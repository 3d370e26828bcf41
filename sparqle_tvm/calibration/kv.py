"""What coarser keys and values lose on calibration text, and which are chosen within a budget.

A factor on the scales of keys or values leaves fewer levels, so that more of their high digits are
zero; the same integers may be held plain. So what a storage loses is a matter of its levels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.budget import parse_share
from sparqle_tvm.calibration.loss import MeasuredKv, chunks, compare, text_loss
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError
from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.numerics.kv_cache import CacheName, parse_kv

if TYPE_CHECKING:
    import tvm

CANDIDATES = ("planes:2", "planes:3", "planes:4", "planes:6", "planes:3,3", "planes:4,4")
"""Storages that calibration measures."""

_HEAD_DIM = 64
"""Channels of the heads that digits were measured of."""


def kv_budget(kv: str) -> float | None:
    """The share of perplexity that ``planes:1%`` may cost; None if `kv` says no budget.

    Raises InvalidArgumentError if it is negative or no number.
    """
    kind, _, budget = kv.partition(":")
    if kind != "planes" or not budget.endswith("%"):
        return None
    share = parse_share(budget)
    if share < 0:
        raise InvalidArgumentError(f"{kv}: the perplexity may increase by 0 % or more")
    return share


def choose_kv(measured: Sequence[MeasuredKv], budget: float) -> MeasuredKv | None:
    """The smallest of what was measured within a budget, None if that is ``planes`` without loss.

    A standard error is added to each loss, so that chance does not spend what there is not.

    Raises
    ------
    CalibrationError
        If nothing was measured.
    """
    if not measured:
        raise CalibrationError(
            "the calibration has no measured losses of keys and values: calibrate again with "
            "--attention int8 (merged calibrations have none)"
        )
    within = [m for m in measured if m.increase.ratio + m.increase.ratio_error <= budget]
    best = min(within, key=lambda m: sum(bits_of(m.storage)), default=None)
    smaller = best is not None and sum(bits_of(best.storage)) < sum(bits_of("planes"))
    return best if smaller else None


def measure_kv(
    mod: tvm.IRModule,
    tokens: npt.NDArray[np.int32],
    progress: Callable[[int], Any] = lambda tokens: None,
) -> tuple[MeasuredKv, ...]:
    """Measure `CANDIDATES` on a model with float attention, as it was imported; none without text.

    Parameters
    ----------
    mod : tvm.IRModule
        Has the functions ``hidden`` and ``head``.
    tokens : int32 (T,)
        Of the text.
    progress : callable
        As for `loss.text_loss`.
    """
    from sparqle_tvm import compiler

    if not any(True for _ in chunks(tokens)):
        return ()
    functions = with_levels(mod, ("int8", *CANDIDATES))
    executable: Any = compiler.compile(functions, compiler.Options(), split=False)

    def loss(kv: str, **options: Any) -> Any:
        run = executable[function_of(levels_of(kv))]
        return text_loss(
            lambda ids: run(ids[None]).numpy()[0],
            lambda states: executable["head"](states[None]).numpy()[0],
            tokens,
            progress=progress,
            **options,
        )

    reference = loss("int8")
    found = ((kv, loss(kv, reference=reference)) for kv in CANDIDATES)
    return tuple(MeasuredKv(kv, compare(reference, lost)) for kv, lost in found)


def with_levels(mod: tvm.IRModule, storages: Sequence[str]) -> tvm.IRModule:
    """``hidden`` as it is, one function with attention in int8 for all levels, and ``head``."""
    import tvm
    from tvm.relax.utils import copy_with_new_vars

    from sparqle_tvm.passes import QuantizeAttention

    functions = {name: mod[name] for name in ("hidden", "head")}
    for kv in storages:
        name = function_of(levels_of(kv))
        if name in functions:
            continue
        quantize: Any = QuantizeAttention(default=parse_kv(kv))
        quantized = quantize(tvm.IRModule({"hidden": copy_with_new_vars(mod["hidden"])}))["hidden"]
        functions[name] = quantized.with_attr("global_symbol", name)
    return tvm.IRModule(functions)


def levels_of(kv: str) -> tuple[int, int]:
    """Levels of keys and of values."""
    storage = parse_kv(kv)
    return storage.keys.levels, storage.values.levels


def function_of(levels: tuple[int, int]) -> str:
    """Name of the function with keys and values of these levels."""
    return "hidden_{}_{}".format(*levels)


def bits_of(kv: str) -> tuple[float, float]:
    """Bits per element of keys and values, mean over the layers and heads of SmolLM2-135M.

    From its measured digits, without pointers and scales. ``planes`` without a factor holds each
    head as is smaller; a factor holds for all.
    """
    storage, measured = parse_kv(kv), measured_attention()
    layers = len(measured.layers)
    found: dict[CacheName, list[float]] = {"key": [], "value": []}
    for place, layer in enumerate(measured.layers):
        heads = len(layer.k_msb_sparsity[0])
        chosen = measured.storage(place, layers, heads, _HEAD_DIM) if kv == "planes" else storage
        for what, bits in found.items():
            mine = chosen.keys if what == "key" else chosen.values
            stored = measured.stored(what, place, layers, heads, mine.levels)
            bits += [mine.mean_bits(1 - share, head) for head, share in enumerate(stored)]
    return float(np.mean(found["key"])), float(np.mean(found["value"]))
