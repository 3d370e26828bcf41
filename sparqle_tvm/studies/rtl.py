"""The array as Verilog, with a testbench that runs a layer of the built-in model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.files import all_or_nothing, write_text
from sparqle_tvm.target.accelerator import Accelerator

LAYER = "blk.0.attn_q.weight"
WEIGHT_BITS = 4


def write_rtl(accelerator: Accelerator, columns: int, folder: Path) -> dict[str, Any]:
    """Write Verilog, testbench, vectors and README; return what there is.

    Parameters
    ----------
    accelerator : Accelerator
        What is built.
    columns : int
        Largest K chunk.
    folder : Path
        Where files go; made if it is not there.

    Returns
    -------
    dict
        ``files``, by name; ``source`` of the vectors; ``tiles`` and ``cycles`` of the testbench.

    Raises
    ------
    TargetError
        If the hardware cannot be built.
    MissingExtraError
        If amaranth or pyosys is not installed.
    """
    from sparqle_tvm.target.rtl.shape import ArrayShape

    shape = ArrayShape.of(accelerator, columns)
    from sparqle_tvm.target.rtl import export

    verilog = export.verilog(shape)
    from sparqle_tvm.frontend.gguf_file import GGUFFile
    from sparqle_tvm.models.builtin import fetch_builtin
    from sparqle_tvm.models.quantized import quantizer_levels
    from sparqle_tvm.numerics import encode, quantize_per_token

    k, x = shape.digit_bits, next(iter(layer_inputs(shape.rows).values()))
    q = quantize_per_token(x, qmax=quantizer_levels(k), k=k)[0]
    sliced = encode(q, k=k, window="signed")
    stored = GGUFFile(fetch_builtin("smollm2")).first_rows(LAYER, shape.cols)
    assert stored is not None, LAYER
    weights = stored.values.reshape(-1, stored.values.shape[2]).T.astype(np.int64)
    tiles = export.tiles_of(sliced, weights, -(-WEIGHT_BITS // k), shape)
    sums = sliced.decode().astype(np.int64) @ weights.T
    source = f"{LAYER} of SmolLM2-135M ({len(q)} tokens, {len(weights)} channels, K = {q.shape[1]})"
    files = {
        export.ARRAY: verilog,
        **export.testbench(shape, tiles, sums),
        "README.md": export.readme(shape, source),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with all_or_nothing():
        for name, text in files.items():
            write_text(folder / name, text)
    cycles = sum(export.tile_cycles(tile, shape) for tile in tiles)
    return {"files": sorted(files), "source": source, "tiles": len(tiles), "cycles": cycles}


@lru_cache(maxsize=1)
def layer_inputs(tokens: int) -> dict[str, NDArray[np.float32]]:
    """Inputs of the dense layers of SmolLM2-135M on its built-in text, by label; `LAYER`'s first.

    Parameters
    ----------
    tokens : int
        Their number M; the model is compiled for them, which takes longest.

    Returns
    -------
    dict of str to float32 (M, K)
    """
    from sparqle_tvm.calibration.choosable_model import ChoosableModel
    from sparqle_tvm.frontend import from_gguf
    from sparqle_tvm.frontend.text import builtin_text, load_tokens
    from sparqle_tvm.models.builtin import fetch_builtin

    imported = from_gguf(fetch_builtin("smollm2"), activations="int8")
    ids = np.asarray(load_tokens(imported.tokenizer, builtin_text(), tokens), np.int32)
    collector = ChoosableModel(imported.mod).collector
    found = collector.inputs(collector.call(ids[None])[1])
    return {label: np.asarray(x, np.float32) for label, x in found.items()}
