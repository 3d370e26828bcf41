"""Inputs of a function: given by name or in order, out of an .npz file, or random."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import read_npz
from sparqle_tvm.results.analysis import InputValue

if TYPE_CHECKING:
    from tvm import relax

Array = npt.NDArray[Any]
Inputs = Sequence[Array] | Mapping[str, Array]

MAX_INPUT_BYTES = 4 << 30
"""Arrays of a file take no more together."""
MAX_RANDOM_ELEMENTS = 1 << 28
"""A random input has no more elements."""
_SHAPE = re.compile(r"(?P<name>[^=]+)=(?P<dims>\d{1,9}(?:x\d{1,9})*|scalar)")


@dataclass(frozen=True)
class Call:
    """Inputs that a function can be called with.

    Attributes
    ----------
    values : tuple of ndarray
        In the order of the parameters.
    described : tuple of InputValue
        The same in words.
    """

    values: tuple[Array, ...]
    described: tuple[InputValue, ...]

    def sizes(self, func: relax.Function) -> dict[Any, int]:
        """The symbolic extents of a form of the function that they were checked against."""
        found: dict[Any, int] = {}
        for param, value in zip(func.params, self.values, strict=True):
            _match(str(param.name), value.shape, param.ty, found)
        return found


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read the arrays of an .npz file, by name.

    Raises
    ------
    InvalidArgumentError
        If there is no such file, it is no .npz file, holds Python objects, or more than
        `MAX_INPUT_BYTES`.
    """
    remedy = "it must be what numpy.savez(file, name=array, ..) writes"
    return read_npz(path, InvalidArgumentError, ".npz file", remedy, limit_bytes=MAX_INPUT_BYTES)


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of ``name=1x128`` (``name=scalar``).

    Raises
    ------
    InvalidArgumentError
        If one is written otherwise, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        found = _SHAPE.fullmatch(text)
        if found is None:
            raise InvalidArgumentError(f"shape {text!r} is not written as name=1x128")
        if found["name"] in shapes:
            raise InvalidArgumentError(f"the shape of {found['name']!r} is given twice")
        dims = found["dims"]
        shapes[found["name"]] = () if dims == "scalar" else tuple(map(int, dims.split("x")))
    return shapes


def checked_call(
    func: relax.Function,
    inputs: Inputs,
    *,
    names: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Call:
    """Inputs of a function, checked against its parameters.

    Parameters
    ----------
    func : relax.Function
        What is called.
    inputs : sequence or mapping of ndarray
        In the order of the parameters, or by name; those that are missing are random.
    names : sequence of str
        Names of the parameters for people, if they are not those of the function.
    shapes : mapping of str to ints
        Shapes of random inputs; not needed where the function fixes them.
    seed : int
        Of random inputs: floats are normal, integers and truth values 0 or 1.

    Raises
    ------
    InvalidArgumentError
        If a name is unknown, there are too many inputs, one has another type or shape than its
        parameter, two disagree about a dynamic axis, or a random one has no shape.
    """
    params = list(func.params)
    known = list(names) if len(names) == len(params) else [str(p.name) for p in params]
    given = _by_name(inputs, known)
    asked = dict(shapes or {})
    for what, found in (("input", given), ("shape", asked)):
        unknown = [name for name in found if name not in known]
        if unknown:
            raise InvalidArgumentError(
                f"{what} {unknown[0]!r}: the function has no parameter of this name, only "
                f"{', '.join(known) or 'none'}"
            )
    both = [name for name in given if name in asked]
    if both:
        raise InvalidArgumentError(f"{both[0]!r} has values, so it needs no shape")
    rng, sizes = np.random.default_rng(seed), dict[Any, int]()
    values, described = [], []
    # Those that are given tell the sizes of dynamic axes first.
    order = sorted(range(len(params)), key=lambda i: (known[i] not in given, known[i] not in asked))
    made: dict[int, Array] = {}
    for i in order:
        name, ty = known[i], _tensor_type(params[i], known[i])
        if name in given:
            made[i] = _typed(name, np.asarray(given[name]), ty)
            _match(name, made[i].shape, ty, sizes)
        else:
            shape = asked.get(name)
            if shape is not None:
                _match(name, tuple(shape), ty, sizes)
            made[i] = _random(name, _shape_of(name, shape, ty, sizes), str(ty.dtype), rng)
    for i, name in enumerate(known):
        source: Any = "given" if name in given else "random"
        values.append(made[i])
        described.append(InputValue(name, made[i].shape, str(made[i].dtype), source))
    return Call(tuple(values), tuple(described))


def _by_name(inputs: Inputs, names: Sequence[str]) -> dict[str, Array]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, str | os.PathLike | np.ndarray) or not isinstance(inputs, Sequence):
        raise InvalidArgumentError("inputs are a sequence of arrays, or a mapping by name")
    if len(inputs) > len(names):
        raise InvalidArgumentError(f"{len(inputs)} inputs for {len(names)} parameters")
    return dict(zip(names, inputs, strict=False))


def _tensor_type(param: relax.Var, name: str) -> Any:
    from tvm import relax

    if not isinstance(param.ty, relax.TensorType):
        raise InvalidArgumentError(
            f"parameter {name!r} is no tensor ({type(param.ty).__name__}); functions of tensors "
            "can be analyzed"
        )
    return param.ty


def _typed(name: str, value: Array, ty: Any) -> Array:
    """The value in the type of its parameter, if that changes nothing."""
    wanted = str(ty.dtype)
    try:
        cast = np.ascontiguousarray(value.astype(wanted, casting="same_kind"))
    except TypeError as error:
        if value.dtype.kind not in "iub" or wanted.startswith("float"):
            raise InvalidArgumentError(
                f"input {name!r} is {value.dtype}, the function takes {wanted}"
            ) from error
        cast = np.ascontiguousarray(value.astype(wanted))
    if wanted.startswith("float"):
        if np.isnan(cast).any():
            raise InvalidArgumentError(f"input {name!r} holds NaN: sparsity would mean nothing")
    elif not np.array_equal(cast, value):
        raise InvalidArgumentError(f"input {name!r}: values of {value.dtype} do not fit {wanted}")
    return cast.reshape(value.shape)


def _match(name: str, shape: tuple[int, ...], ty: Any, sizes: dict[Any, int]) -> None:
    """Bind dynamic axes, refuse other shapes."""
    import tvm
    from tvm import relax

    if not isinstance(ty.shape, relax.ShapeExpr):
        if ty.ndim not in (-1, len(shape)):
            raise InvalidArgumentError(f"{name!r} has {len(shape)} axes, the function takes {ty}")
        return
    extents = list(ty.shape.values)
    wrong = len(shape) != len(extents)
    for extent, size in zip(extents, shape, strict=False):
        if isinstance(extent, tvm.tirx.IntImm):
            wrong = wrong or int(extent) != size
        elif isinstance(extent, tvm.tirx.Var):
            wrong = wrong or sizes.setdefault(extent, size) != size
    if wrong:
        wanted = " x ".join(_extent(extent, sizes) for extent in extents)
        found = " x ".join(map(str, shape)) or "a scalar"
        raise InvalidArgumentError(
            f"{name!r} is {found}, the function takes {wanted or 'a scalar'}"
        )


def _extent(extent: Any, sizes: Mapping[Any, int]) -> str:
    """An extent in words: a number if it is known, else its name or what it is made of."""
    import tvm

    known = int(extent) if isinstance(extent, tvm.tirx.IntImm) else sizes.get(extent, extent)
    return str(known)


def _shape_of(
    name: str, shape: Sequence[int] | None, ty: Any, sizes: Mapping[Any, int]
) -> tuple[int, ...]:
    import tvm
    from tvm import relax

    if shape is not None:
        return tuple(shape)
    if isinstance(ty.shape, relax.ShapeExpr):
        found = [
            int(e) if isinstance(e, tvm.tirx.IntImm) else sizes.get(e) for e in ty.shape.values
        ]
        if None not in found:
            return tuple(size for size in found if size is not None)
        axes = " x ".join(_extent(extent, {}) for extent in ty.shape.values)
        raise InvalidArgumentError(
            f"{name!r} is {axes}: give its values, or a shape ({name}=1x128) for random ones"
        )
    raise InvalidArgumentError(f"{name!r} may have any shape: give its values, or a shape")


def _random(name: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    if int(np.prod(shape, dtype=object)) > MAX_RANDOM_ELEMENTS:
        raise InvalidArgumentError(f"{name!r}: {shape} is too large for a random input")
    if dtype.startswith("float"):
        return np.asarray(rng.standard_normal(shape), dtype)
    return np.asarray(rng.integers(0, 2, shape), dtype)
