"""How many MSB digits the rows of a model's activations store, for models that were not run.

A distribution has, for every layer type (`shapes.LAYER_TYPES`), one or more classes of layers; a
class is a quantile function of the share of stored digits per row (token). There are three sources:

- ``measured``: what was measured on SmolLM2-135M, for digits of 2, 4 and 8 bits, stored with the
  package. For another model it is *transferred*: nobody ran that model.
- a number s: all layers alike. The logarithm of the odds of a row's share is normally distributed
  around a mean such that the shares have the mean 1 - s; its standard deviation is that within the
  measured layers (`row_spread`).
- a JSON file: ``{"qkv": 0.9, "o": ..., "gate_up": ..., "down": ..., "output": ...}``, or the output
  of ``sparqle run --json``. It says with ``"digit_bits": k`` what digits it is about; if it does
  not, they have 4 bits.

What was measured with digits of one width says nothing about another (of 8-bit digits hardly one is
zero): `msb_distribution` refuses it. Stored digits of a row are drawn evenly over its columns.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.files import Share, read_json, typed
from sparqle_tvm.models.shapes import LAYER_TYPES
from sparqle_tvm.numerics.integers import require_digit_bits
from sparqle_tvm.numerics.row_nnz import RowNnz

MEASURED = "measured"
DIGIT_BITS = 4
"""Width of the digits of a file that does not say it."""
QUANTILES = 33
"""Points of a stored quantile function, evenly spaced from 0 to 1."""
CLASSES = 5
"""Classes that the layers of a type are summed up in, from sparse to dense."""
MAX_DRAWN_ROWS = 1024
"""More rows than that repeat."""

_BLOCK = re.compile(r"^blk_\d+_")
_DATA = Path(__file__).parent / "data"
_TYPE_OF_READER = {
    "attn_q": "qkv",
    "attn_k": "qkv",
    "attn_v": "qkv",
    "attn_output": "o",
    "ffn_gate": "gate_up",
    "ffn_up": "gate_up",
    "ffn_down": "down",
    "output": "output",
}

Density = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MsbDistribution:
    """Shares of stored MSB digits by layer type.

    Attributes
    ----------
    label : str
        Where it comes from, for reports.
    transferred : bool
        It was measured on another model.
    classes : mapping of str to tuple of ndarray
        For every layer type its classes of layers, equally frequent: quantile functions of the
        share of stored digits per row, float64, evenly spaced from 0 to 1.
    digit_bits : int
        Bits k of a digit.
    """

    label: str
    transferred: bool
    classes: Mapping[str, tuple[Density, ...]]
    digit_bits: int = DIGIT_BITS

    def msb_sparsity(self, layer_type: str) -> float:
        """Mean share of zero MSB digits of a layer type, 0 to 1."""
        return 1.0 - float(np.mean([_strata(q, 1)[0] for q in self.classes[layer_type]]))

    def layer_counts(self, layer_type: str, layers: int) -> tuple[int, ...]:
        """How many of so many layers are in each class; classes without any are left out."""
        classes = len(self.classes[layer_type])
        return tuple(len(range(i, layers, classes)) for i in range(min(classes, layers)))

    def draw(
        self, layer_type: str, which: int, rows: int, in_features: int, unit: int, seed: int = 0
    ) -> RowNnz:
        """Draw the stored digits of a layer's activations.

        Parameters
        ----------
        layer_type : str
            One of `LAYER_TYPES`.
        which : int
            Its class.
        rows, in_features : int
            M and K. More than `MAX_DRAWN_ROWS` rows repeat.
        unit : int
            Columns counted together.
        seed : int
            Equal seeds draw equal digits.

        Returns
        -------
        RowNnz
            The rows' shares are the means of the class's quantile function over `rows` equal
            parts, in random order, so that their mean is that of the class.
        """
        return _draw(self, layer_type, which, rows, in_features, unit, seed)

    def shifted(self, share: float) -> MsbDistribution:
        """The same with that share of zero MSB digits more in every row, of 0 to 1 at the ends."""
        classes = {
            kind: tuple(np.clip(quantiles - share, 0.0, 1.0) for quantiles in found)
            for kind, found in self.classes.items()
        }
        label = f"{self.label}, {100 * share:+g} points"
        return replace(self, label=label, classes=classes)


def msb_distribution(
    source: str | float | os.PathLike[str] | MsbDistribution = MEASURED,
    digit_bits: int = DIGIT_BITS,
) -> MsbDistribution:
    """Find the distribution that a user names.

    Parameters
    ----------
    source : str, float, path or MsbDistribution
        ``measured``, an MSB sparsity from 0 to 1 (a number, or its text), or a JSON file.
    digit_bits : {2, 4, 8}
        Bits k of the accelerator's digits. A number is taken as it is for any k.

    Raises
    ------
    InvalidArgumentError
        If a number lies outside [0, 1], the file cannot be read or has not what is needed, or the
        digits have another width.
    """
    if isinstance(source, str) and source == MEASURED:
        return measured(digit_bits)
    if not isinstance(source, MsbDistribution):
        try:
            sparsity = float(source)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            source = from_file(source)  # type: ignore[arg-type]
        else:
            return constant(sparsity, digit_bits)
    if source.digit_bits != digit_bits:
        raise InvalidArgumentError(
            f"{source.label} is about digits of {source.digit_bits} bits, the accelerator has "
            f"digits of {digit_bits}: use {MEASURED!r}, a number from 0 to 1, or a file that was "
            f'measured at that width and says "digit_bits": {digit_bits}'
        )
    return source


@lru_cache
def measured(digit_bits: int) -> MsbDistribution:
    """What was measured on SmolLM2-135M with digits of that width.

    The files say with which command, ``benchmarks/msb_sparsity_table.py`` how.

    Raises
    ------
    InvalidArgumentError
        If there are no such digits.
    """
    require_digit_bits(digit_bits)
    data = json.loads(measured_file(digit_bits).read_text(encoding="utf-8"))
    return _distribution(data["label"], True, data["layer_types"], digit_bits, MEASURED)


def measured_densities(labels: Iterable[str], digit_bits: int) -> dict[str, float]:
    """Share of stored MSB digits to expect of encodings by the names of ops that read them.

    That of their layer type as measured; names of no known type are left out.
    """
    found, known = {}, measured(digit_bits)
    for label in labels:
        kind = layer_type_of([label])
        if kind is not None:
            found[label] = 1.0 - known.msb_sparsity(kind)
    return found


@lru_cache(maxsize=64)
def constant(sparsity: float, digit_bits: int = DIGIT_BITS) -> MsbDistribution:
    """All layers with this mean MSB sparsity, rows spread as those of the measured layers.

    Raises
    ------
    InvalidArgumentError
        If it is not from 0 to 1.
    """
    quantiles = _spread_around(_checked(sparsity, "MSB sparsity"), digit_bits)
    label = f"MSB sparsity {sparsity:g} in all layers"
    return MsbDistribution(label, False, dict.fromkeys(LAYER_TYPES, (quantiles,)), digit_bits)


def from_file(path: str | os.PathLike[str]) -> MsbDistribution:
    """Read a JSON file, see the module.

    Raises
    ------
    InvalidArgumentError
        If it cannot be read, is no JSON, lacks a layer type, or a sparsity is not from 0 to 1.
    """
    try:
        data = read_json(path, InvalidArgumentError, "what the documentation shows")
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"MSB sparsity {str(path)!r} is neither {MEASURED!r}, nor a number from 0 to 1, nor a "
            f"JSON file: {error}"
        ) from error
    label = f"MSB sparsity of {Path(path).name}"
    if isinstance(data, dict) and "msb_sparsity" in data:
        return of_run(data, label, str(path))
    digit_bits = DIGIT_BITS
    if isinstance(data, dict):
        digit_bits = data.pop("digit_bits", DIGIT_BITS)
        data = data.get("layer_types", data)
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"{path}: a JSON object by layer type is expected")
    return _distribution(label, False, data, digit_bits, path)


@dataclass(frozen=True)
class _RunLayer:
    """What is read of an encoding that ``sparqle run --json`` wrote about."""

    consumers: tuple[str, ...]
    row_density: tuple[Share, ...]


@dataclass(frozen=True)
class _RunSparsity:
    layers: tuple[_RunLayer, ...]


@dataclass(frozen=True)
class _RunAccelerator:
    digit_bits: int = DIGIT_BITS


@dataclass(frozen=True)
class _Run:
    """What is read of the output of ``sparqle run --json``."""

    msb_sparsity: _RunSparsity
    accelerator: _RunAccelerator = _RunAccelerator()


def of_run(data: Mapping[str, Any], label: str, where: str = "the run") -> MsbDistribution:
    """What ``sparqle run --json`` measured, for the model that was run.

    Parameters
    ----------
    data : mapping
        Content of the file.
    label : str
        For reports.
    where : str
        Name of the file, for errors.

    Raises
    ------
    InvalidArgumentError
        If it says nothing about rows, or lacks a layer type.
    """
    again = f"{where} has no rows of layers; write it again with `sparqle run --json`"
    run = typed(data, _Run, again, InvalidArgumentError, partial=True)
    layers = run.msb_sparsity.layers
    points = {len(layer.row_density) for layer in layers}
    if len(points) != 1 or min(points) < 2:
        raise InvalidArgumentError(f"{again}: each layer needs as many points as all others")
    found = [(layer_type_of(layer.consumers), layer.row_density) for layer in layers]
    known = [(kind, quantiles) for kind, quantiles in found if kind is not None]
    digit_bits = run.accelerator.digit_bits
    return _distribution(label, False, summarize(known), digit_bits, where)


def row_quantiles(nnz: RowNnz) -> list[float]:
    """Quantile function of the share of stored digits per row, at `QUANTILES` even points."""
    shares = nnz.per_chunk(nnz.in_features)[:, 0] / nnz.in_features
    points = np.quantile(shares, np.linspace(0, 1, QUANTILES))
    return [round(float(value), 5) for value in points]


def layer_type_of(readers: Sequence[str]) -> str | None:
    """Layer type of an encoding by the names of its readers, as a GGUF file has them."""
    types = {_TYPE_OF_READER.get(_BLOCK.sub("", name)) for name in readers}
    return types.pop() if len(types) == 1 else None


def summarize(layers: Sequence[tuple[str, Sequence[float]]]) -> dict[str, list[list[float]]]:
    """Sum up measured layers: the content of a file by layer type.

    Parameters
    ----------
    layers : sequence of (str, sequence of float)
        Layer type, and quantile function (`row_quantiles`) of each layer.

    Returns
    -------
    dict
        For each type the classes. Layers are sorted by their mean and dealt into `CLASSES` equal
        parts; a class is the mean of its quantile functions, so it has their mean and spread.
    """
    result = {}
    for layer_type in dict.fromkeys(kind for kind, _ in layers):
        members = np.array([q for kind, q in layers if kind == layer_type])
        ordered = members[np.argsort(members.mean(axis=1), kind="stable")]
        parts = np.array_split(ordered, min(CLASSES, len(ordered)))
        result[layer_type] = [[round(float(x), 5) for x in part.mean(axis=0)] for part in parts]
    return result


def measured_file(digit_bits: int = DIGIT_BITS) -> Path:
    """Where the package keeps what was measured with digits of that width."""
    return _DATA / f"msb_sparsity_smollm2_k{digit_bits}.json"


@lru_cache
def row_spread(digit_bits: int = DIGIT_BITS) -> float:
    """Standard deviation of the logarithm of the odds of a row's share, within measured layers.

    The mean over all classes of the types in the blocks.
    """
    spreads = []
    for layer_type, classes in measured(digit_bits).classes.items():
        if layer_type != "output":
            for quantiles in classes:
                shares = np.clip(_strata(quantiles, 256), 1e-4, 1 - 1e-4)
                spreads.append(np.log(shares / (1 - shares)).std())
    return float(np.mean(spreads))


# A sweep asks for the same digits again and again.
@lru_cache(maxsize=256)
def _draw(
    distribution: MsbDistribution,
    layer_type: str,
    which: int,
    rows: int,
    in_features: int,
    unit: int,
    seed: int,
) -> RowNnz:
    """See `MsbDistribution.draw`; the counts cannot be written."""
    rng = np.random.default_rng([seed, LAYER_TYPES.index(layer_type), which])
    quantiles = distribution.classes[layer_type][which]
    share = rng.permutation(_strata(quantiles, min(rows, MAX_DRAWN_ROWS)))
    drawn = RowNnz.drawn(rng, share, in_features, unit).counts
    counts = np.resize(drawn, (rows, drawn.shape[1]))
    counts.setflags(write=False)
    return RowNnz(counts, unit, in_features)


def _spread_around(sparsity: float, digit_bits: int) -> Density:
    if sparsity in (0.0, 1.0):
        return np.full(QUANTILES, 1.0 - sparsity)
    # Ends of the normal distribution are cut where a run of some hundred rows ends.
    points = np.clip(np.linspace(0, 1, QUANTILES), 1 / 512, 1 - 1 / 512)
    normal = np.array([NormalDist().inv_cdf(float(p)) for p in points])

    def shares(center: float) -> Density:
        return np.asarray(1 / (1 + np.exp(-(center + row_spread(digit_bits) * normal))))

    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        if float(_strata(shares(middle), 1)[0]) < 1 - sparsity:
            low = middle
        else:
            high = middle
    return shares((low + high) / 2)


def _strata(quantiles: Density, parts: int) -> Density:
    """Means of a quantile function over equal parts of [0, 1]."""
    points = np.linspace(0, 1, len(quantiles))
    steps = np.diff(points) * (quantiles[1:] + quantiles[:-1]) / 2
    integral = np.concatenate([[0.0], np.cumsum(steps)])
    edges = np.linspace(0, 1, parts + 1)
    # The integral of a piecewise linear function, exactly.
    at = np.minimum((edges * (len(points) - 1)).astype(int), len(points) - 2)
    inside = edges - points[at]
    slope = (quantiles[at + 1] - quantiles[at]) * (len(points) - 1)
    values = integral[at] + inside * (quantiles[at] + slope * inside / 2)
    return np.asarray(np.clip(np.diff(values) * parts, 0.0, 1.0))


def _distribution(
    label: str, transferred: bool, data: Mapping[str, Any], digit_bits: int, where: object
) -> MsbDistribution:
    """Check the content of a file by layer type."""
    try:
        require_digit_bits(digit_bits)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{where}: digit_bits: {error}") from error
    unknown, missing = sorted(set(data) - set(LAYER_TYPES)), sorted(set(LAYER_TYPES) - set(data))
    if unknown or missing:
        what = f"unknown layer types {unknown}" if unknown else f"missing layer types {missing}"
        raise InvalidArgumentError(f"{where}: {what}; known: {', '.join(LAYER_TYPES)}")
    classes = {kind: _classes(data[kind], f"{where}: {kind}", digit_bits) for kind in LAYER_TYPES}
    return MsbDistribution(label, transferred, classes, digit_bits)


def _classes(value: Any, where: str, digit_bits: int) -> tuple[Density, ...]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (_spread_around(_checked(value, where), digit_bits),)
    try:
        classes = tuple(np.array(quantiles, dtype=np.float64) for quantiles in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"{where}: a number or lists of numbers: {error}") from error
    for quantiles in classes:
        inside = quantiles.size and (quantiles >= 0).all() and (quantiles <= 1).all()
        if quantiles.ndim != 1 or len(quantiles) < 2 or not inside:
            raise InvalidArgumentError(
                f"{where}: shares of stored digits are lists of at least two numbers from 0 to 1"
            )
    if not classes:
        raise InvalidArgumentError(f"{where}: no class of layers")
    return tuple(np.sort(quantiles) for quantiles in classes)


def _checked(sparsity: float, what: str) -> float:
    if not 0.0 <= sparsity <= 1.0:
        raise InvalidArgumentError(f"{what} = {sparsity:g} must be from 0 to 1")
    return float(sparsity)
