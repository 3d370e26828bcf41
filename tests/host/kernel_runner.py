"""Compile a host kernel and call it with NumPy arrays; the same for a legalized module."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from sparqle_tvm import dialect
from sparqle_tvm.host.legalize import HOST_LEGALIZE_MAP
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.threads import use_threads

GENERIC = tvm.target.Target("llvm")
NATIVE = host_target()


@cache
def _compiled(kernel: tirx.PrimFunc, target: tvm.target.Target) -> Any:
    func = kernel.with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": func}), target=target)["kernel"]


def run_kernel(
    kernel: tirx.PrimFunc,
    inputs: list[np.ndarray],
    outputs: list[tuple[tuple[int, ...], str]],
    target: tvm.target.Target = NATIVE,
) -> list[np.ndarray]:
    """Outputs of a kernel; what it does not write holds the byte 0xAA."""
    # order="C" and not ascontiguousarray, which would turn a scalar into a vector.
    tensors = [tvm.runtime.tensor(np.array(array, order="C")) for array in inputs]
    for shape, dtype in outputs:
        empty = np.zeros(shape, dtype)
        empty.view(np.uint8).fill(0xAA)
        tensors.append(tvm.runtime.tensor(empty))
    _compiled(kernel, target)(*tensors)
    return [tensor.numpy() for tensor in tensors[len(inputs) :]]


def panels(array: np.ndarray, cols: int, dtype: str | None = None) -> np.ndarray:
    """(N, inner) -> (ceil(N / cols), inner, cols) or (N,) -> (ceil(N / cols), cols), padded."""
    matrix = array.reshape(array.shape[0], -1)
    count = -(-matrix.shape[0] // cols)
    padded = np.zeros((count * cols, matrix.shape[1]), dtype or array.dtype)
    padded[: matrix.shape[0]] = matrix
    arranged = np.moveaxis(padded.reshape(count, cols, -1), 1, 2)
    return arranged[:, 0] if array.ndim == 1 else arranged


def nibble_panels(weight: np.ndarray, cols: int) -> np.ndarray:
    """(N, K) of 4 bits -> (ceil(N / cols), K + 1, cols / 2): two in a byte, then what was added."""
    half, wide = cols // 2, panels(weight, cols).astype(np.int32)
    shift = np.where(wide.min(axis=(1, 2), keepdims=True) < 0, 8, 0)
    stored = wide + shift
    packed = stored[..., :half] + 16 * stored[..., half:]
    rows = np.broadcast_to(shift, (len(wide), 1, half))
    return np.concatenate([packed, rows], axis=1).astype(np.uint8)


def with_threads(count: int, work: Callable[[], Any]) -> Any:
    """The result of `work`, its kernels run with so many threads."""

    def run() -> Any:
        use_threads(count)
        return work()

    # TVM keeps a thread pool per thread: a new one leaves that of the other tests alone.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


def one_function(
    args: list[tuple[str, list[Any], str]], emit: Callable[..., relax.Expr]
) -> tvm.IRModule:
    """A module whose ``main`` takes tensors (name, shape, dtype) and returns ``emit(*vars)``."""
    dialect.register()
    builder = relax.BlockBuilder()
    params = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape, dtype in args]
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(emit(*params))
        builder.emit_func_output(result)
    return builder.get()


def legalize(mod: tvm.IRModule, *, fold: bool = True) -> tvm.IRModule:
    """The module with host kernels, constants folded."""
    with NATIVE:
        mod = relax.transform.LegalizeOps(HOST_LEGALIZE_MAP)(mod)
        if fold:
            mod = relax.transform.FoldConstant()(mod)
            mod = relax.transform.DeadCodeElimination()(mod)
    return mod


def run_main(mod: tvm.IRModule, *inputs: np.ndarray) -> Any:
    """Build a legalized module, call its ``main``."""
    machine = relax.VirtualMachine(relax.build(mod, NATIVE), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(array) for array in inputs])
    if isinstance(result, tvm.runtime.Tensor):
        return result.numpy()
    return [field.numpy() for field in result]


def kernels_of(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The module's PrimFuncs by name."""
    return {
        var.name_hint: func
        for var, func in mod.functions.items()
        if isinstance(func, tirx.PrimFunc)
    }
