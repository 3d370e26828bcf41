"""Functions that stand for several parts of others: which parts, and what these are called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax

SEGMENTS = "sparqle_segments"
"""Attribute of a function that was made of repeated bindings: JSON, one entry per call."""


@dataclass(frozen=True)
class Segment:
    """What a call of such a function stands for.

    Attributes
    ----------
    caller : str
        Name of the function that calls.
    names : dict of str to str
        What variables of the function were called in the caller: labels are made of them.
    """

    caller: str
    names: dict[str, str]


def with_segments(func: relax.Function, segments: Sequence[Segment]) -> relax.Function:
    """The function, saying what it stands for."""
    entries = [
        (each.caller, {mine: own for mine, own in each.names.items() if mine != own})
        for each in segments
    ]
    return func.with_attr(SEGMENTS, json.dumps(entries))


def segments_of(func: relax.Function) -> list[Segment]:
    """What a function stands for, in the order of its calls; nothing if it is any other."""
    if func.attrs is None or SEGMENTS not in func.attrs:
        return []
    return [Segment(*entry) for entry in json.loads(str(func.attrs[SEGMENTS]))]
