"""Split-precision (sub-precision sparsity) for quantized language models, on Apache TVM.

The public names are loaded on first use, because importing TVM takes seconds.
"""
