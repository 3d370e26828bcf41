"""A tiny model and its calibration, for tests of all that takes one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_files import write_prose, write_tiny_model

from sparqle_tvm.calibration import Calibration
from sparqle_tvm.calibration.collect import Collector
from sparqle_tvm.frontend import ImportedModel, from_gguf
from sparqle_tvm.frontend.text import load_tokens, read_text

TOKENS = 200


@dataclass(frozen=True, eq=False)
class Tiny:
    """A model on disk, imported, with its compiled collector and the tokens it ran.

    `unused` is the same collector before it ran any.
    """

    folder: Path
    imported: ImportedModel
    tokens: np.ndarray
    collector: Collector
    calibration: Calibration
    unused: Collector


def calibrate_tiny(folder: Path) -> Tiny:
    """Write a tiny model and a text to a folder, and calibrate on 200 tokens in two parts."""
    write_prose(folder)
    imported = from_gguf(write_tiny_model(folder), progress=False)
    text = read_text(folder / "prose.txt")
    tokens = np.asarray(load_tokens(imported.tokenizer, text, TOKENS), np.int32)
    collector = Collector(imported.mod)
    unused = copy.copy(collector)
    for part in (tokens[:120], tokens[120:]):
        collector.run(part[None], key=part.tobytes())
    calibration = collector.result(model_name="tiny", text_name="prose", tokens=TOKENS)
    return Tiny(folder, imported, tokens, collector, calibration, unused)
