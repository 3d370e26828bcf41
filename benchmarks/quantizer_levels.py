"""What the whole int8 range costs and gains against the coarser scale of our models.

    python benchmarks/quantizer_levels.py [--tokens 512] [--levels 119 127]

SmolLM2-135M-Instruct runs with int8 activations, quantized per token to a largest magnitude of 119
(what `models.quantized.quantizer_levels` takes) and of 127 (all that int8 has). Both are exact in
the planes; they differ in the step. Perplexity is that of the text's tokens, with its difference to
the first and the standard error of that; MSB sparsity is weighted by MACs; cycles are those of the
array over all dense layers, by formula from the bitmaps.
"""

from __future__ import annotations

import argparse

import numpy as np

from sparqle_tvm.calibration.choosable_model import ChoosableModel
from sparqle_tvm.calibration.loss import compare
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.frontend.text import builtin_text, load_tokens
from sparqle_tvm.models import quantized
from sparqle_tvm.models.builtin import fetch_builtin
from sparqle_tvm.studies.count import count_phases
from sparqle_tvm.studies.evaluation import transformer_shape
from sparqle_tvm.target.accelerator import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--levels", type=int, nargs="+", default=[119, 127])
    arguments = parser.parse_args()
    print("levels  perplexity  against the first    MSB sparsity  array cycles  saved")
    first = None
    for levels in arguments.levels:
        quantized.QMAX = levels
        imported = from_gguf(fetch_builtin("smollm2"), activations="int8", progress=False)
        text = load_tokens(imported.tokenizer, builtin_text(), arguments.tokens)
        model = ChoosableModel(imported.mod)
        loss = model.loss(np.asarray(text, np.int32), count=True)
        first = first or loss
        worse = compare(first, loss)
        shape = transformer_shape(imported.config)
        prefill, _ = count_phases(model.encodings, shape, PRESETS["sparqle/edge"])
        cost = prefill.schemes["sparqle"]
        print(
            f"{levels:6}  {loss.perplexity:10.2f}  {worse.ratio:+8.2%} ± {worse.ratio_error:5.2%}"
            f"  {prefill.msb_sparsity:14.1%}  {cost.mma_cycles:12,}  {cost.mma_saved:.1%}"
        )


if __name__ == "__main__":
    main()
