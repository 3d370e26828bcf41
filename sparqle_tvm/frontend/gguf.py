"""Import a language model from a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.errors import InvalidArgumentError, ModelFileError, UnsupportedModelError
from sparqle_tvm.frontend.gguf_file import GGUFFile
from sparqle_tvm.frontend.tokenizer import Tokenizer, tokenizer_from_gguf
from sparqle_tvm.models.builtin import builtin_name
from sparqle_tvm.models.decoder import DecoderConfig, Yarn, export_decoder
from sparqle_tvm.models.quantized import StoredWeight, StoredWeights, Weight
from sparqle_tvm.progress import progress_bar

if TYPE_CHECKING:
    import tvm

Activations = Literal["int8", "float32"]

_BITNET: Mapping[str, Any] = {"rope_halves": True, "sub_norms": True}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},  # and mistral, whose files say llama
    "qwen2": {"rope_halves": True},
    "qwen3": {"rope_halves": True, "head_norms": True},
    "gemma": {"rope_halves": True, "gate": "gelu"},
    "phi3": {"rope_halves": True, "fused": True},
    "bitnet": _BITNET,
    "bitnet-b1.58": {**_BITNET, "gate": "relu2"},
}
"""Values of "general.architecture" that can be imported, with the fields of `DecoderConfig` in
which they differ from a llama. Biases are found by their tensors."""

_NOT_BUILT: Mapping[str, str] = {
    "gemma2": "norms behind attention and MLP, capped scores and logits, a window in every second "
    "layer",
    "gemma3": "norms behind attention and MLP, a window and a RoPE base of its own in most layers",
}
"""Near relatives of `ARCHITECTURES`, and what they have that `DecoderConfig` does not."""

KNOWN_KEYS: Mapping[str, frozenset[str]] = {
    "attention": frozenset(
        {
            *("head_count", "head_count_kv", "key_length", "value_length", "causal"),
            *("layer_norm_rms_epsilon", "sliding_window"),
        }
    ),
    "rope": frozenset(
        {
            *("dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor"),
            # Only for other kinds of scaling than those that are supported; and how it was trained.
            *("scaling.original_context_length", "scaling.finetuned"),
        }
    ),
}
"""Keys below ``attention.`` and ``rope.`` that are read, or that change nothing."""

YARN_KEYS: Mapping[str, str] = {
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""Keys below ``rope.scaling.`` that YaRN has, and what they are fields of; longrope has one."""


@dataclass(frozen=True)
class ImportedModel:
    """A language model as an IRModule, and what came with it.

    Attributes
    ----------
    template : the module, with the functions that `sparqle_tvm.models.decoder` describes; weights
        are parameters of these
    weights : what these parameters take, read from the file when somebody asks for it:
        ``sparqle_tvm.compile(template, weights=weights)``
    config : its shape
    name : what people call the built-in model; of others the name in the file, or of the file
    sha256 : SHA-256 of the file, in hexadecimal digits
    activations : what the dense layers compute on
    file : the file that it came from, with its tensors
    """

    template: tvm.IRModule = field(repr=False)
    weights: StoredWeights = field(repr=False)
    config: DecoderConfig
    name: str
    sha256: str
    activations: Activations
    file: GGUFFile = field(repr=False)

    @cached_property
    def mod(self) -> tvm.IRModule:
        """The module with its weights as constants; made, and kept, when it is asked for."""
        return export_decoder(self.config, _Source(self.file, self.activations))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file.

        Raises
        ------
        ModelFileError
            If the file has none, or it is damaged.
        UnsupportedModelError
            If it is of a kind that is not supported.
        """
        return tokenizer_from_gguf(self.file)


def from_gguf(
    path: str | PathLike[str], *, activations: Activations = "int8", progress: bool = True
) -> ImportedModel:
    """Import a decoder of one of `ARCHITECTURES`.

    Quantized weights stay the integers that they are, with their scales: those of K-quants and
    IQ4_XS are products of a float16 and an integer, which are kept as float32. F16, BF16 and F32
    weights become float32 layers. Of a model that was split, the first file is given.

    Parameters
    ----------
    path : GGUF file
    activations : "int8" quantizes the input of each dense layer with integer weights per token;
        "float32" turns all weights into float32 and quantizes nothing
    progress : show a progress bar

    Raises
    ------
    ModelFileError
        If the file is missing, truncated or not GGUF, or lacks metadata or a tensor.
    UnsupportedModelError
        If its architecture, or the type of a tensor, is not supported.
    InvalidArgumentError
        If `activations` is neither of the two.
    """
    if activations not in get_args(Activations):
        raise InvalidArgumentError(f"activations={activations!r} is neither 'int8' nor 'float32'")
    file = GGUFFile(Path(path))
    config = read_config(file)
    count, sha256 = len(file.tensors), file.sha256()
    with progress_bar(progress=progress, total=count, desc="import", unit="tensor") as bar:
        source = _StoredSource(file, activations, bar)
        weights = StoredWeights(f"{sha256} {activations}")
        template = export_decoder(config, source, weights)
    if file.unused():
        raise UnsupportedModelError(
            f"{file.path}: tensors that a {file.require('general.architecture', str)} does not "
            f"have here: {', '.join(file.unused()[:5])}"
        )
    return ImportedModel(
        template=template,
        weights=weights,
        config=config,
        name=builtin_name(sha256) or file.get("general.name", str) or file.path.stem,
        sha256=sha256,
        activations=activations,
        file=file,
    )


def read_config(file: GGUFFile) -> DecoderConfig:
    """Read the shape of the model from the metadata.

    Raises
    ------
    ModelFileError
        If metadata is missing, or contradicts itself.
    UnsupportedModelError
        If the architecture, or a variant of it, is not supported.
    """
    arch = file.require("general.architecture", str)
    if arch not in ARCHITECTURES:
        missing = f" (it has {_NOT_BUILT[arch]})" if arch in _NOT_BUILT else ""
        raise UnsupportedModelError(
            f"{file.path}: architecture {arch!r} is not supported{missing}; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    _refuse_unknown(file, arch)
    if file.get(f"{arch}.expert_count", int):
        raise UnsupportedModelError(f"{file.path}: mixtures of experts are not supported")
    embed = file.require(f"{arch}.embedding_length", int)
    heads = file.require(f"{arch}.attention.head_count", int)
    kv_heads = file.get(f"{arch}.attention.head_count_kv", int) or heads
    head_dim = file.get(f"{arch}.attention.key_length", int) or embed // max(heads, 1)
    value_dim = file.get(f"{arch}.attention.value_length", int) or head_dim
    config = DecoderConfig(
        layers=file.require(f"{arch}.block_count", int),
        embed=embed,
        ffn=file.require(f"{arch}.feed_forward_length", int),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope_dim=file.get(f"{arch}.rope.dimension_count", int) or head_dim,
        rope_base=file.get(f"{arch}.rope.freq_base", float) or 10000.0,
        norm_eps=file.require(f"{arch}.attention.layer_norm_rms_epsilon", float),
        vocab=file.get(f"{arch}.vocab_size", int) or _vocab_size(file),
        context=file.require(f"{arch}.context_length", int),
        tied_head="output.weight" not in file.tensors,
        rope_scale=_rope_scale(file, arch),
        embed_scale=embed**0.5 if arch == "gemma" and embed > 0 else 1.0,
        **ARCHITECTURES[arch],
    )
    config = replace(config, yarn=_yarn(file, arch, config.context), **_within(file, arch, config))
    _check(file, config, value_dim)
    return config


def _vocab_size(file: GGUFFile) -> int:
    tensor = file.tensors.get("token_embd.weight")
    if tensor is None:
        raise ModelFileError(f"{file.path}: tensor 'token_embd.weight' is missing")
    return int(tensor.shape[-1])


def _rope_scale(file: GGUFFile, arch: str) -> float:
    """What positions are divided by; a factor without a type is linear, as in llama.cpp."""
    factor = file.get(f"{arch}.rope.scaling.factor", float)
    if factor is None:
        factor = file.get(f"{arch}.rope.scale_linear", float)
    kind = file.get(f"{arch}.rope.scaling.type", str) or ("none" if factor is None else "linear")
    if kind == "none" or _is_longrope(file, arch):
        return 1.0
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"{file.path}: RoPE scaling {kind!r} is not supported; supported: none, linear, yarn, "
            "longrope"
        )
    return factor if factor is not None else file.require(f"{arch}.rope.scaling.factor", float)


def _is_longrope(file: GGUFFile, arch: str) -> bool:
    kind = file.get(f"{arch}.rope.scaling.type", str)
    return kind == "longrope" or (kind is None and "rope_factors_short.weight" in file.tensors)


def _within(file: GGUFFile, arch: str, config: DecoderConfig) -> dict[str, Any]:
    """The context in which the model is the same for all texts, and the factor of longrope.

    A sliding window hides nothing from texts that are not longer; short factors of longrope are
    for texts up to the original context.
    """
    context = config.context
    window = file.get(f"{arch}.attention.sliding_window", int)
    if window:
        context = min(context, window)
    if not _is_longrope(file, arch):
        return {"context": context}
    original = file.get(f"{arch}.rope.scaling.original_context_length", int) or context
    factor = file.get(f"{arch}.rope.scaling.attn_factor", float)
    return {"context": min(context, original), "rope_factor": 1.0 if factor is None else factor}


def _yarn(file: GGUFFile, arch: str, context: int) -> Yarn | None:
    prefix = f"{arch}.rope.scaling."
    if file.get(f"{prefix}type", str) != "yarn":
        return None
    given = {field: file.get(prefix + key, float) for key, field in YARN_KEYS.items()}
    return Yarn(
        file.get(f"{prefix}original_context_length", int) or context,
        **{field: value for field, value in given.items() if value is not None},
    )


def _refuse_unknown(file: GGUFFile, arch: str) -> None:
    """Raise if the file has a key that changes attention or positions and that nobody reads."""
    scaling = set(YARN_KEYS) if file.get(f"{arch}.rope.scaling.type", str) == "yarn" else set()
    scaling |= {"attn_factor"} if _is_longrope(file, arch) else set()
    for part, known in KNOWN_KEYS.items():
        prefix = f"{arch}.{part}."
        found = {key.removeprefix(prefix) for key in file.keys(prefix)} - known
        unknown = sorted(found - {f"scaling.{key}" for key in scaling})
        if unknown:
            raise UnsupportedModelError(
                f"{file.path}: metadata {prefix + unknown[0]!r} is not known, and may change what "
                "the model computes"
            )
    if file.get(f"{arch}.attention.causal", bool) is False:
        raise UnsupportedModelError(f"{file.path}: attention that is not causal is not supported")


def _check(file: GGUFFile, config: DecoderConfig, value_dim: int) -> None:
    """Raise unless the sizes fit together."""
    sizes = (config.layers, config.embed, config.ffn, config.heads, config.kv_heads, config.vocab)
    reason = ""
    if min(*sizes, config.head_dim, config.context) < 1:
        reason = "a size is not positive"
    elif config.heads % config.kv_heads:
        reason = f"{config.heads} heads cannot share {config.kv_heads} key/value heads"
    elif config.rope_dim % 2 or config.rope_dim > config.head_dim:
        reason = f"{config.rope_dim} channels of {config.head_dim} cannot be rotated in pairs"
    elif not (config.rope_base > 0 and config.rope_scale > 0 and config.norm_eps >= 0):
        reason = "a RoPE base, a RoPE scale or a norm epsilon is out of range"
    elif config.rope_factor <= 0:
        reason = "the factor of longrope is out of range"
    elif config.yarn is not None and not _is_sound(config.yarn, config.rope_base):
        reason = "the numbers of the YaRN scaling are out of range"
    if reason:
        raise ModelFileError(f"{file.path}: the metadata is not consistent: {reason}")
    if value_dim != config.head_dim:
        raise UnsupportedModelError(
            f"{file.path}: values of {value_dim} channels with keys of {config.head_dim} are not "
            "supported"
        )


def _is_sound(yarn: Yarn, base: float) -> bool:
    return base > 1 and yarn.original_context > 0 and yarn.beta_fast > yarn.beta_slow > 0


class _Source:
    """The weights of a file, as `export_decoder` asks for them."""

    def __init__(self, file: GGUFFile, activations: Activations) -> None:
        self._file, self._activations = file, activations

    def dense(self, name: str, in_features: int, out_features: int) -> Weight | StoredWeight:
        weight = self._file.weight(name, in_features, out_features)
        return weight.to_float() if self._activations == "float32" else weight

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        return self._file.vector(name, size)

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors


class _StoredSource(_Source):
    """The same, but that matrices stay in the file."""

    def __init__(self, file: GGUFFile, activations: Activations, bar: Any) -> None:
        super().__init__(file, activations)
        self._bar = bar

    def dense(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        weight = self._file.stored(name, in_features, out_features)
        self._bar.update()
        return weight.to_float() if self._activations == "float32" else weight

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        self._bar.update()
        return super().vector(name, size)
