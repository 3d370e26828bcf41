"""The sizes of a model, which is all that estimates need: by name, of a GGUF file or a config.json.

No weight is read but a few rows, which tell how a GGUF file stores integers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparqle_tvm.errors import (
    InvalidArgumentError,
    ModelFileError,
    UnsupportedModelError,
    choose_from,
)
from sparqle_tvm.files import Size, read_json, typed
from sparqle_tvm.models.shapes import MODELS, ModelShape, WeightFormat

if TYPE_CHECKING:
    from sparqle_tvm.frontend.gguf_file import GGUFFile

CONFIG = "config.json"
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_norms": True},
    "gemma": {},
    "phi3": {},
    "bitnet": {"sub_norms": True},
}
"""Values of ``model_type`` in a config.json that are read, with what differs from a llama."""
INT4 = WeightFormat(4, 128)
"""What weights are counted as that are floats in the file: what people quantize them to."""
TERNARY = WeightFormat(2)
_INT4_NOTE = "weights counted as int4 in groups of 128"


def model_shape(model: str | PathLike[str] | ModelShape) -> ModelShape:
    """The sizes of a model.

    Parameters
    ----------
    model : str, path or ModelShape
        A name of `models.shapes.MODELS`, a GGUF file (``.gguf``), a ``config.json`` of Hugging Face
        or a folder with one. A shape is returned as it is.

    Raises
    ------
    InvalidArgumentError
        If there is no such model.
    ModelFileError
        If a file is missing or damaged.
    UnsupportedModelError
        If its architecture is none of those known.
    """
    if isinstance(model, ModelShape):
        return model
    name = str(model)
    name = "smollm2-135m" if name == "smollm2" else name
    if name in MODELS:
        return MODELS[name]
    path = Path(model)
    if path.suffix.lower() == ".gguf":
        return _of_gguf(path)
    if path.suffix.lower() == ".json":
        return _of_config(path)
    if path.is_dir():
        return _of_config(path / CONFIG)
    if path.suffix.lower() == ".toml":
        raise InvalidArgumentError(f"{name} describes an accelerator: give it as --target")
    raise InvalidArgumentError(
        f"unknown model {name!r}; {choose_from(name, list(MODELS))}; or give a GGUF file, or a "
        f"{CONFIG} of Hugging Face or its folder"
    )


@dataclass(frozen=True)
class _Quantized:
    """What a config.json says of weights that are integers (GPTQ, AWQ)."""

    bits: Size
    group_size: int = -1
    sym: bool = True
    zero_point: bool = False


@dataclass(frozen=True)
class _Config:
    """What is read of a config.json."""

    model_type: str
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    vocab_size: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: int = 0
    sliding_window: int | None = None
    use_sliding_window: bool = True
    quantization_config: Any = None
    name: str = ""


def _of_config(path: Path) -> ModelShape:
    data = read_json(path, ModelFileError, f"a {CONFIG} of Hugging Face")
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"{path}: model_type {kind!r} is not known; known: {', '.join(MODEL_TYPES)}"
        )
    config = typed(data, _Config, path, ModelFileError, partial=True)
    heads = config.num_attention_heads
    window = config.sliding_window if config.use_sliding_window else None
    weights, note = _format_of_config(config, path)
    return _checked(
        path,
        ModelShape(
            name=str(data.get("_name_or_path") or path.resolve().parent.name or path.stem),
            source=f"{path}; {note}",
            layers=config.num_hidden_layers,
            embed=config.hidden_size,
            ffn=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_dim=config.head_dim or config.hidden_size // heads,
            vocab=config.vocab_size,
            weights=weights,
            max_positions=min(filter(None, (config.max_position_embeddings, window)), default=0),
            **MODEL_TYPES[config.model_type],
        ),
    )


def _format_of_config(config: _Config, path: Path) -> tuple[WeightFormat, str]:
    """How weights are counted, and that in words."""
    found = config.quantization_config
    if isinstance(found, dict) and "bits" in found:
        stored = typed(
            found, _Quantized, f"{path}, quantization_config", ModelFileError, partial=True
        )
        bits = next((bits for bits in (2, 4, 8) if bits >= stored.bits), 8)
        group = max(stored.group_size, 0)
        zeros = stored.zero_point or not stored.sym
        return WeightFormat(bits, group, zeros), f"weights of {stored.bits} bits as it says"
    if config.model_type == "bitnet":
        return TERNARY, "ternary weights in 2 bits"
    return INT4, _INT4_NOTE


def _of_gguf(path: Path) -> ModelShape:
    from sparqle_tvm.frontend.gguf import read_config
    from sparqle_tvm.frontend.gguf_file import GGUFFile

    file = GGUFFile(path)
    config = read_config(file)
    blocks: Counter[str] = Counter()
    for name, tensor in file.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            blocks[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = blocks.most_common(1)[0][0] if blocks else ""
    weights = _format_of_gguf(file, kind, "blk.")
    output = "token_embd.weight" if config.tied_head else "output.weight"
    output_kind = file.tensors[output].tensor_type.name if output in file.tensors else ""
    return _checked(
        path,
        ModelShape(
            name=file.get("general.name", str) or path.stem,
            source=f"{path}; "
            + (f"weights as in it, most of them {kind}" if weights else _INT4_NOTE),
            layers=config.layers,
            embed=config.embed,
            ffn=config.ffn,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocab=config.vocab,
            weights=weights or INT4,
            output_weights=_format_of_gguf(file, output_kind, output) or WeightFormat(8),
            max_positions=config.context,
            head_norms=config.head_norms,
            sub_norms=config.sub_norms,
        ),
    )


def _format_of_gguf(file: GGUFFile, kind: str, prefix: str) -> WeightFormat | None:
    """How the weights of a type are imported; None for floats, and for what is not imported."""
    from sparqle_tvm.passes._value_range import weight_bits

    if kind == "I2_S":
        return TERNARY
    for name, tensor in file.tensors.items():
        if name.startswith(prefix) and tensor.tensor_type.name == kind and len(tensor.shape) == 2:
            rows = file.first_rows(name)
            if rows is None:
                return None
            return WeightFormat(
                bits=weight_bits((float(rows.values.min()), float(rows.values.max()))),
                group_size=rows.values.shape[1],
                has_min=rows.minimum is not None,
                scale_bytes=rows.scale.itemsize,
            )
    return None


def _checked(path: Path, shape: ModelShape) -> ModelShape:
    """The shape, if its sizes fit together."""
    if shape.heads % shape.kv_heads or shape.head_dim < 1:
        raise ModelFileError(
            f"{path}: {shape.heads} heads of {shape.head_dim} channels and {shape.kv_heads} "
            "key/value heads do not fit together"
        )
    return shape
