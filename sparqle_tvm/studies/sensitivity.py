"""Which knob next: every numeric field of an accelerator doubled and halved, one at a time.

Nothing is extrapolated: each change is an estimate of its own, with tiles chosen for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from sparqle_tvm.errors import SparqleError
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import PARTS
from sparqle_tvm.results.sensitivity import FieldChange, PartChange, Sensitivity
from sparqle_tvm.studies.estimate import COMPARED
from sparqle_tvm.target.accelerator import Accelerator, explained

FACTORS = (2.0, 0.5)

_DIGITS = (
    "activations would have {bits} bits, which is another quantization of the model, with digits "
    "and a perplexity of its own"
)


def sensitivity(
    accelerator: Accelerator,
    estimate_on: Callable[[Accelerator], Estimate],
    *,
    ahead: Callable[[Sequence[Accelerator]], None] = lambda _: None,
    progress: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Double and halve every numeric field.

    Parameters
    ----------
    accelerator : Accelerator
        Where it begins.
    estimate_on : callable
        Estimates the pass in question on an accelerator, under `COMPARED` at least; everything
        else is the same in all calls.
    ahead : callable
        Is told all accelerators before, so that their schedules may be chosen together.
    progress : callable
        Called after each of `count_changes`.
    """
    made = [
        _changed(accelerator, name, value, factor)
        for name, value in _numeric_fields(accelerator)
        for factor in FACTORS
    ]
    ahead([accelerator, *(m for _, m in made if isinstance(m, Accelerator))])
    base, changes = estimate_on(accelerator), []
    for change, machine in made:
        changes.append(_filled(change, machine, base, estimate_on))
        progress()
    return Sensitivity(base, tuple(changes))


def count_changes(accelerator: Accelerator) -> int:
    """How many changes there are."""
    return len(FACTORS) * sum(1 for _ in _numeric_fields(accelerator))


def _numeric_fields(accelerator: Accelerator) -> Iterator[tuple[str, float]]:
    sizes = set()
    for field in fields(accelerator):
        value = getattr(accelerator, field.name)
        if accelerator.scratchpad and field.name.endswith("_buffer_bytes"):
            # One memory: what counts is the sum.
            if value in sizes:
                continue
            sizes.add(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield field.name, value


def _changed(
    accelerator: Accelerator, name: str, value: float, factor: float
) -> tuple[FieldChange, Accelerator | None]:
    """A change without figures, and the accelerator, if it is possible."""
    after = value * factor
    if isinstance(value, int) and after == int(after):
        after = int(after)
    change = FieldChange(name, factor, value, after, {}, _impossible(name, value, after))
    if change.impossible:
        return change, None
    changed: dict[str, Any] = {name: after}
    try:
        return change, replace(accelerator, **changed)
    except SparqleError as error:
        message = _message(accelerator, error).removesuffix(f"; {explained(name)}")
        return replace(change, impossible=message), None


def _filled(
    change: FieldChange,
    machine: Accelerator | None,
    base: Estimate,
    estimate_on: Callable[[Accelerator], Estimate],
) -> FieldChange:
    if machine is None:
        return change
    try:
        found = estimate_on(machine)
    except SparqleError as error:
        return replace(change, impossible=_message(machine, error))
    return replace(change, parts={part: _compare(base, found, part) for part in PARTS})


def _message(accelerator: Accelerator, error: SparqleError) -> str:
    return str(error).removeprefix(f"accelerator {accelerator.name!r}: ")


def _impossible(name: str, value: float, after: float) -> str:
    """Why a field cannot be changed so, where the accelerator itself would take it."""
    if name == "digit_bits":
        return _DIGITS.format(bits=f"{2 * after:g}")
    if value == after:
        return f"{name} = {value:g} remains what it is"
    return ""


def _compare(base: Estimate, found: Estimate, part: str) -> PartChange:
    costs = {s: (base.schemes[s].part(part), found.schemes[s].part(part)) for s in COMPARED}
    saved = found.saved("sparqle", part)
    return PartChange(
        seconds={s: new.seconds / old.seconds - 1 for s, (old, new) in costs.items()},
        joules={
            s: new.energy.joules.mid / old.energy.joules.mid - 1 for s, (old, new) in costs.items()
        },
        time_saved=saved.cycles,
        energy_saved=saved.energy.mid,
    )
