"""Build imported modules for the host, and run them on NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from sparqle_tvm.compiler import host_pipeline
from sparqle_tvm.models.logits import Functions, Tokens, logits_chunks


def build(mod: tvm.IRModule, functions: Iterable[str] | None = None) -> relax.VirtualMachine:
    """Build the module, or some of its functions, for the host, without split precision."""
    if functions is not None:
        mod = tvm.IRModule({name: mod[name] for name in functions})
    executable = relax.build(mod, "llvm", relax_pipeline=host_pipeline())
    return relax.VirtualMachine(executable, tvm.cpu())


def tensor(values: Any) -> tvm.runtime.Tensor:
    """Copy token ids to an int32 tensor of shape (1, T)."""
    return tvm.runtime.tensor(np.asarray(values, dtype=np.int32).reshape(1, -1))


def all_logits(functions: Functions, tokens: Tokens, *, chunk: int = 64) -> NDArray[np.float32]:
    """Logits of all positions: float32 of shape (T, V)."""
    return np.concatenate(list(logits_chunks(functions, tokens, chunk=chunk)))
