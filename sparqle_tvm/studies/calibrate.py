"""``sparqle_tvm.calibrate``: a model and a text in, a calibration out."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.budget import STORED_SHARES
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.search import Importance, Search
from sparqle_tvm.errors import InvalidArgumentError, require_known
from sparqle_tvm.numerics.attention import AttentionType
from sparqle_tvm.progress import progress_bar
from sparqle_tvm.studies.inputs import check_text, import_model, read_tokens

if TYPE_CHECKING:
    from sparqle_tvm.frontend import ImportedModel

MEASURED_TOKENS = 2048
"""Tokens of the calibration text that the loss of some choices is measured on, at most."""


def calibrate(
    model: str | PathLike[str] | ImportedModel = "smollm2",
    text: str | PathLike[str] | None = None,
    tokens: int = 4096,
    *,
    importance: Importance = "weights",
    attention: AttentionType = "float",
    progress: bool = True,
) -> Calibration:
    """Run text through a quantized language model, and keep what choices of scales need.

    One pass in chunks of 512 tokens; memory does not depend on the length of the text. Then a few
    choices of scales are run on the first 2,048 tokens, so that a limit on perplexity can be
    kept: what a choice is expected to lose is brought to nats with what it did lose.

    Parameters
    ----------
    model : str, path or ImportedModel
        ``"smollm2"`` (fetched on first use), a GGUF file, or what `frontend.from_gguf` imported
        with int8 activations.
    text : path, optional
        A UTF-8 text file; by default the second half of the built-in prose, which `sparqle run`
        does not measure on.
    tokens : int
        Tokens of the text to run.
    importance : {"weights", "fisher"}
        ``fisher`` collects squared gradients too, with torch (extra ``torch``).
    attention : {"float", "int8"}
        How attention is computed meanwhile, see `sparqle_tvm.compile`; with ``int8``, storages of
        keys and values are measured, too, so that ``--kv planes:1%`` can choose one.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    SparqleError
        One of its classes: a bad model or text, NaN or Inf in activations, no torch.
    """
    from sparqle_tvm.calibration.fisher import require_torch

    require_known("importance", importance, get_args(Importance))
    require_known("attention", attention, get_args(AttentionType))
    check_text(text, tokens)
    if tokens < 2:
        raise InvalidArgumentError(
            f"tokens = {tokens}: calibration measures how well the next token is foretold, so it "
            "needs 2 tokens, and some hundreds to say anything"
        )
    if importance == "fisher":
        require_torch()
    imported = import_model(model, progress=progress)
    name, ids = read_tokens(imported, text, tokens)
    options: Any = {"importance": importance, "attention": attention, "progress": progress}
    return calibrate_tokens(imported, ids, name, **options)


def calibrate_tokens(
    imported: ImportedModel,
    ids: npt.NDArray[np.int32],
    text_name: str,
    *,
    importance: Importance = "weights",
    attention: AttentionType = "float",
    progress: bool = True,
) -> Calibration:
    """Calibrate with the tokens (T,) of a text; see :func:`calibrate`."""
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.calibration.fisher import squared_gradients
    from sparqle_tvm.calibration.kv import CANDIDATES, measure_kv
    from sparqle_tvm.passes import QuantizeAttention

    fisher = None
    if importance == "fisher":
        fisher = squared_gradients(imported, ids, progress=progress)
    runs = 1 + len(STORED_SHARES) + (1 + len(CANDIDATES)) * (attention == "int8")
    count = len(ids) + min(len(ids), MEASURED_TOKENS) * runs
    with progress_bar(progress=progress, total=count, desc="compile", unit="token") as bar:
        quantize: Any = QuantizeAttention()
        mod = imported.mod if attention == "float" else quantize(imported.mod)
        choosable = ChoosableModel(mod)
        bar.set_description("calibrate")
        choosable.collect(ids, bar.update)
        calibration = choosable.collector.result(
            model_name=imported.name, text_name=text_name, tokens=len(ids), fisher=fisher
        )
        bar.set_description("measure")
        search = Search(calibration, importance=importance)
        some = ids[:MEASURED_TOKENS]
        calibration = replace(calibration, measured=choosable.measure(search, some, bar.update))
        if attention == "int8":
            del choosable  # one model in memory at a time
            found = measure_kv(imported.mod, some, bar.update)
            calibration = replace(calibration, measured_kv=found)
        return calibration
