"""Models and texts that studies run: by name, by path, or those that come with the package."""

from __future__ import annotations

import importlib
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from sparqle_tvm.errors import (
    InvalidArgumentError,
    MissingExtraError,
    ModelFileError,
    TargetError,
    TextError,
    require_known,
)
from sparqle_tvm.frontend.shape import CONFIG
from sparqle_tvm.models.attention_sparsity import measured_attention
from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.numerics.integers import require_int8
from sparqle_tvm.numerics.kv_cache import KvStorage, parse_kv
from sparqle_tvm.results.losses import KvChoice, Loss
from sparqle_tvm.target.accelerator import Accelerator

if TYPE_CHECKING:
    import tvm

    from sparqle_tvm.calibration import Calibration
    from sparqle_tvm.frontend import ImportedModel

BUILTIN_MODEL = "smollm2"
BUILTIN_NAMES = (BUILTIN_MODEL, "smollm2-135m")
"""Its name, and the one that its sizes have."""
BUILTIN_TEXT = "built-in prose (Python's language reference)"
CALIBRATION_TEXT = "built-in prose, second half (Python's language reference)"
HELDOUT_TEXT = "built-in prose, first half (Python's language reference)"
INT8_ATTENTION = "hidden_int8_attention"


def runs(model: str | PathLike[str]) -> bool:
    """Whether a model has weights to run: the built-in one and GGUF files, no published sizes."""
    name = str(model)
    return name in BUILTIN_NAMES or (name not in MODELS and Path(model).suffix.lower() == ".gguf")


def model_path(model: str | PathLike[str], *, progress: bool = True) -> Path:
    """Return the GGUF file of a model, fetching the built-in one on first use.

    Raises
    ------
    InvalidArgumentError
        If it is a model of which only the sizes are known.
    """
    if str(model) not in BUILTIN_NAMES:
        if str(model) in MODELS or Path(model).name == CONFIG:
            raise InvalidArgumentError(
                f"{model}: only its sizes are known, which sparqle estimate, sweep and tune take; "
                f"to run it, give its GGUF file, or {BUILTIN_MODEL}"
            )
        return Path(model)
    from sparqle_tvm.models.builtin import fetch_builtin

    return fetch_builtin(BUILTIN_MODEL, progress=progress)


ARRAY_MODELS = (".onnx", ".pt2")
"""Endings of model files that say nothing of texts."""


def is_language_model(model: str | PathLike[str]) -> bool:
    """Whether a model runs on a text: the built-in one, and GGUF files."""
    return Path(model).suffix.lower() not in ARRAY_MODELS


def load_module(model: str | PathLike[str]) -> Any:
    """Import a model that runs on arrays, by the ending of its file.

    Raises
    ------
    ModelFileError, UnsupportedModelError, MissingExtraError
        As the frontend raises them.
    """
    from sparqle_tvm import frontend

    if Path(model).suffix.lower() == ".pt2":
        return frontend.from_exported_program(_exported_program(Path(model)))
    return frontend.from_onnx(model)


def _exported_program(path: Path) -> Any:
    """Read what ``torch.export.save`` wrote; PyTorch's loader is as safe as it is."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            "PyTorch models need torch, which is not installed: pip install 'sparqle-tvm[torch]'"
        ) from error
    if not path.is_file():
        raise ModelFileError(f"{path} cannot be read: there is no such file")
    from sparqle_tvm.frontend.torch import quiet

    try:
        with quiet():
            # A program of PT2E is read only where the ops of its quantization are known.
            importlib.import_module("torch.ao.quantization.fx._decomposed")
            with suppress(ImportError):
                importlib.import_module("torchao.quantization")
            return torch.export.load(path)
    except Exception as error:  # of zipfile, of PyTorch: whatever they stumble over
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if "warnings above" in reason:
            reason = "no exported program is in it (did torch.save write it?)"
        raise ModelFileError(
            f"{path} is not what torch.export.save of this PyTorch writes: {reason}"
        ) from error


def import_model(
    model: str | PathLike[str] | ImportedModel, *, progress: bool = True
) -> ImportedModel:
    """Import a model by name or path with int8 activations; one that is imported stays."""
    from sparqle_tvm.frontend import ImportedModel, from_gguf

    if isinstance(model, ImportedModel):
        if model.activations != "int8":
            raise InvalidArgumentError(
                "calibration needs a model with int8 activations; import it with activations='int8'"
            )
        return model
    return from_gguf(model_path(model, progress=progress), progress=progress)


def functions_of_a_run(
    imported: ImportedModel, *, both_attentions: bool = False, stored: bool = False
) -> tvm.IRModule:
    """What a run calls: the functions with a cache have the same layers, and compile as long.

    With `stored`, weights are parameters, to be compiled with ``weights=imported.weights``; factors
    are chosen for weights that are constants.

    With `both_attentions`, compiled with ``attention="int8"``, ``hidden`` keeps attention in
    float32, and `INT8_ATTENTION` is the same with attention in integers.
    """
    import tvm
    from tvm.relax.utils import copy_with_new_vars

    from sparqle_tvm.passes import FLOAT_ATTENTION

    mod = imported.template if stored else imported.mod
    functions = {name: mod[name] for name in ("hidden", "head")}
    if both_attentions:
        hidden = functions["hidden"]
        copy = copy_with_new_vars(hidden)
        functions[INT8_ATTENTION] = copy.with_attr("global_symbol", INT8_ATTENTION)
        functions["hidden"] = hidden.with_attr(FLOAT_ATTENTION, True)
    return tvm.IRModule(functions)


def require_attention(attention: str, kv: str) -> None:
    """Refuse a form of attention, or of its cache, that there is not: InvalidArgumentError."""
    require_known("attention", attention, get_args(AttentionType))
    if attention == "float" and kv != "int8":
        raise InvalidArgumentError(f"kv={kv!r} is about attention in int8, not in float")
    parse_kv(kv)


def chosen_kv(kv: str, calibration: Calibration | None) -> tuple[str, KvChoice | None]:
    """A storage of keys and values, and what chose it if `kv` is a budget, ``planes:1%``.

    Raises
    ------
    InvalidArgumentError
        If the budget has no calibration to choose from.
    CalibrationError
        If nothing was measured in it.
    """
    from sparqle_tvm.calibration.kv import choose_kv, kv_budget

    budget = kv_budget(kv)
    if budget is None:
        return kv, None
    if calibration is None:
        raise InvalidArgumentError(
            f"kv={kv!r} is a budget, which needs a calibration to choose factors from: run sparqle "
            "calibrate --attention int8, and give its file with --calibration"
        )
    best = choose_kv(calibration.measured_kv, budget)
    increase = None if best is None else Loss.of(best.increase)
    storage = "planes" if best is None else best.storage
    return storage, KvChoice(kv, calibration.text_name, increase)


def kv_options(kv: str, imported: ImportedModel) -> dict[str, Any]:
    """Options of `sparqle_tvm.compile` for a storage of keys and values, as `parse_kv` reads it.

    With ``planes``, each head of the built-in model is stored as is smaller by what was measured;
    of another model, keys in planes and values as plain int8.
    """
    known: dict[str, KvStorage] = {}
    if kv == "planes" and imported.sha256 == measured_attention().model_sha256:
        config = imported.config
        sizes = (config.layers, config.kv_heads, config.head_dim)
        stored = (measured_attention().storage(i, *sizes) for i in range(config.layers))
        known = {f"blk_{i}_attn": storage for i, storage in enumerate(stored)}
    return {"kv": known, "default_kv": parse_kv(kv)}


def checked_accelerator(
    accelerator: str | Accelerator | tvm.target.Target, tokens: int
) -> Accelerator:
    """The accelerator that a model's perplexity on some tokens is measured beside.

    Raises
    ------
    InvalidArgumentError
        If there are less than two tokens.
    TargetError
        If there is no such accelerator, or it is not one for int8.
    """
    if tokens < 2:
        raise InvalidArgumentError(f"perplexity needs at least 2 tokens, {tokens} were asked for")
    chosen = Accelerator.from_target(accelerator)
    require_int8(chosen.digit_bits, f"accelerator {chosen.name!r}", TargetError)
    return chosen


def read_content(text: str | PathLike[str] | None) -> tuple[str, str]:
    """Name and content of a text file, or of all of the built-in prose."""
    from sparqle_tvm.frontend.text import builtin_text, read_text

    return (BUILTIN_TEXT, builtin_text()) if text is None else (str(text), read_text(text))


def check_text(text: str | PathLike[str] | None, tokens: int) -> None:
    """Refuse a text or a number of tokens that cannot be, before a model is read for it.

    Raises
    ------
    InvalidArgumentError
        If there is not even one token.
    TextError
        If the text is missing or empty.
    """
    if tokens < 1:
        raise InvalidArgumentError(f"the number of tokens is {tokens}, it must be at least 1")
    _, content = read_content(text)
    if not content.strip():
        raise TextError(f"{text}: the text is empty")


def read_tokens(
    imported: ImportedModel,
    text: str | PathLike[str] | None,
    tokens: int,
    *,
    heldout: bool = False,
    fewer: bool = False,
) -> tuple[str, npt.NDArray[np.int32]]:
    """Name and first tokens of a text file, or of the built-in text for calibration.

    Parameters
    ----------
    imported : ImportedModel
        Has the tokenizer.
    text : path, optional
        A UTF-8 text file; by default a half of the built-in prose.
    tokens : int
        How many.
    heldout : bool
        Of the built-in prose take the half that calibration does not see.
    fewer : bool
        Take all that the text has, if it has fewer.

    Raises
    ------
    TextError
        If the text is missing, empty or too short.
    """
    from sparqle_tvm.frontend.text import builtin_parts, load_tokens, read_text

    name = HELDOUT_TEXT if heldout else CALIBRATION_TEXT
    content = builtin_parts()[0 if heldout else 1] if text is None else read_text(text)
    tokenizer = imported.tokenizer
    ids = tokenizer.encode(content)[:tokens] if fewer else load_tokens(tokenizer, content, tokens)
    return (name if text is None else str(text)), np.asarray(ids, np.int32)
