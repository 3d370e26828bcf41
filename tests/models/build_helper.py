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
        mod = only(mod, functions)
    executable = relax.build(mod, "llvm", relax_pipeline=host_pipeline())
    return relax.VirtualMachine(executable, tvm.cpu())


def only(mod: tvm.IRModule, functions: Iterable[str]) -> tvm.IRModule:
    """The module with some of its functions, and what they call: others take time to compile."""
    kept = set(functions)
    # What has no symbol of its own stays only if it is called.
    private = {
        gv: f
        if gv.name_hint in kept or "global_symbol" not in (f.attrs or {})
        else f.without_attr("global_symbol")
        for gv, f in mod.functions.items()
    }
    return relax.transform.DeadCodeElimination(sorted(kept))(tvm.IRModule(private))


def tensor(values: Any) -> tvm.runtime.Tensor:
    """Copy token ids to an int32 tensor of shape (1, T)."""
    return tvm.runtime.tensor(np.asarray(values, dtype=np.int32).reshape(1, -1))


def all_logits(functions: Functions, tokens: Tokens, *, chunk: int = 64) -> NDArray[np.float32]:
    """Logits of all positions: float32 of shape (T, V)."""
    return np.concatenate(list(logits_chunks(functions, tokens, chunk=chunk)))
