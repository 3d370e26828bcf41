"""Weights that functions take as parameters: what is known of them before they are loaded.

A function says so in an attribute, by the names of its parameters, so that a module without
tensors compiles as one that has them as constants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tvm import relax

WEIGHTS = "sparqle_weights"
"""Attribute of a function: JSON of the bounds of its weights, by name of the parameter."""

PACK_WEIGHTS, WEIGHT_SUMS = "sparqle.pack_weights", "sparqle.weight_sums"
"""Packed functions (`runtime.launch`) that make tensors of weights, and do nothing else."""

Bounds = tuple[float, float]


def declare_weights(func: relax.Function, bounds: Mapping[str, Bounds]) -> relax.Function:
    """The function, saying which of its parameters are weights.

    Parameters
    ----------
    bounds : mapping of str to (float, float)
        Smallest and largest value, infinite ones of floats of which nothing is known. Floats that
        have bounds are multiples of 2^-24.
    """
    return func.with_attr(WEIGHTS, json.dumps(dict(bounds)))


def declared_weights(func: relax.Function) -> dict[relax.Var, Bounds]:
    """The parameters of a function that are weights, with their bounds."""
    if func.attrs is None or WEIGHTS not in func.attrs:
        return {}
    known = json.loads(str(func.attrs[WEIGHTS]))
    found = ((param, known.get(str(param.name))) for param in func.params)
    return {param: (bounds[0], bounds[1]) for param, bounds in found if bounds is not None}
