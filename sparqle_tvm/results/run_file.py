"""The JSON file of `sparqle run`, read back with its types checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from sparqle_tvm.errors import ResultFileError, SparqleError
from sparqle_tvm.results.run import JSON_VERSION
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.vector import TransformerShape

Json = dict[str, Any]

_T = TypeVar("_T")


@dataclass(frozen=True)
class LayerCost:
    """Cost of one dense layer under one scheme; fields as in `target.cost.analytical.OpCost`."""

    mma_cycles: int
    dma_cycles: int
    total_cycles: int
    dram_bytes: int
    bound: str


@dataclass(frozen=True)
class Layer:
    """One dense layer of a pass.

    Attributes
    ----------
    label, type : str
        Name, and the name without its block.
    block : int or None
        Block of the model, None for the output layer.
    window : str
        Window of its activations.
    msb_sparsity : float
        Share of zero MSB digits in its activations, 0 to 1.
    m, n, k, weight_bits, group_size, has_min
        As in `target.op.DenseOp`.
    macs : int
        Multiply-accumulates at full precision.
    costs : mapping of str to LayerCost
        By scheme.
    """

    label: str
    type: str
    block: int | None
    window: str
    msb_sparsity: float
    m: int
    n: int
    k: int
    weight_bits: int
    group_size: int
    has_min: bool
    macs: int
    costs: Mapping[str, LayerCost]


@dataclass(frozen=True)
class Phase:
    """Prefill or decode of a run.

    Attributes
    ----------
    name : {"prefill", "decode"}
        Which.
    tokens, past : int
        Tokens of the pass, and tokens in the cache before it.
    msb_sparsity : float
        Mean of the dense layers, weighted by MACs.
    layers : tuple of Layer
        Every dense layer in program order.
    data : dict
        The whole JSON object of the phase.
    energy : dict
        Its energy: by part, by scheme, and the reduction.
    """

    name: str
    tokens: int
    past: int
    msb_sparsity: float
    layers: tuple[Layer, ...]
    data: Json
    energy: Json


@dataclass(frozen=True)
class RunFile:
    """A finished `sparqle run`.

    Attributes
    ----------
    data : dict
        The whole JSON object.
    accelerator : Accelerator
        What was counted for.
    transformer : TransformerShape
        Sizes of the model.
    prefill, decode : Phase
        The two passes.
    """

    data: Json
    accelerator: Accelerator
    transformer: TransformerShape
    prefill: Phase
    decode: Phase

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.data["model"]["name"])

    @property
    def energy_table(self) -> str:
        """Name of the table that energy was counted with."""
        return str(self.data["energy"]["table"])

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """Prefill and decode."""
        return self.prefill, self.decode


def load_run(path: str | os.PathLike[str]) -> RunFile:
    """Read a file that ``sparqle run --json`` wrote.

    Raises
    ------
    ResultFileError
        If there is no such file, it is not JSON, of another version, or not whole.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultFileError(
            f"{path} is not JSON ({error}); it must be a file of sparqle run --json"
        ) from error
    return parse_run(data, str(path))


def parse_run(data: Any, where: str = "the result") -> RunFile:
    """Check a run's JSON data and give it types.

    Parameters
    ----------
    data : dict
        What `RunResult.to_json` returned.
    where : str
        Where it came from, for errors.

    Raises
    ------
    ResultFileError
        As `load_run`.
    """
    version = data.get("version") if isinstance(data, dict) else None
    if version != JSON_VERSION:
        raise ResultFileError(
            f"{where} has version {version!r}, not {JSON_VERSION}: make it again with "
            "sparqle run --json FILE of this release"
        )
    try:
        return RunFile(
            data=data,
            accelerator=Accelerator(**data["accelerator"]),
            transformer=TransformerShape(**data["transformer"]),
            prefill=_phase("prefill", data["prefill"], data["energy"]["prefill"]),
            decode=_phase("decode", data["decode"], data["energy"]["decode"]),
        )
    except SparqleError as error:
        raise ResultFileError(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultFileError(
            f"{where} is not a whole file of sparqle run --json: {type(error).__name__} {error}"
        ) from error


def _phase(name: str, data: Json, energy: Json) -> Phase:
    for part in ("dense_layers", "whole_model"):
        _ = data[part]["dense"]["cycles"], data[part]["sparqle"]["cycles"]
        _ = energy[part]["reduction"]["mid"]
    return Phase(
        name=name,
        tokens=data["tokens"],
        past=data["past"],
        msb_sparsity=data["msb_sparsity"],
        layers=tuple(_layer(row) for row in data["layers"]),
        data=data,
        energy=energy,
    )


def _layer(row: Json) -> Layer:
    costs = {scheme: _fill(LayerCost, row[scheme]) for scheme in ("dense", "sparqle")}
    return _fill(Layer, {**row, "costs": costs})


def _fill(kind: type[_T], data: Json) -> _T:
    """Make a `kind` of the keys that it has."""
    return kind(**{field.name: data[field.name] for field in fields(cast(Any, kind))})
