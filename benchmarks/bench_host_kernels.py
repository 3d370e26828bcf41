"""Speed of the host kernels beside NumPy's float32 matmul, in the same run.

Prints milliseconds and GMAC/s per kernel and shape; for split-precision kernels GMAC/s count one
plane each (two passes). NumPy multiplies float32 matrices of the same shape.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tvm

from sparqle_tvm.host.encode import EncodeSpec, encode_kernel
from sparqle_tvm.host.matmul import matmul_kernel
from sparqle_tvm.host.matmul_tile import MatmulSpec
from sparqle_tvm.host.planes import SplitForm
from sparqle_tvm.host.processor import host_target
from sparqle_tvm.host.register_tile import host_tile
from sparqle_tvm.host.split_dense import DenseKernel, split_dense_kernel
from sparqle_tvm.target.op import DenseOp
from sparqle_tvm.threads import use_threads

TARGET = host_target()
TILE = host_tile(TARGET)


@dataclass
class Row:
    """One measurement; `numpy_gmacs` is None where there is nothing to compare."""

    kernel: str
    shape: str
    milliseconds: float
    gmacs: float | None = None
    numpy_gmacs: float | None = None


def fastest(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of the calls that fit into the time given, at least three."""
    best, start, calls = float("inf"), time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        calls += 1
    return best


def compiled(kernel: Any) -> Any:
    func = kernel.with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": func}), target=TARGET)["kernel"]


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]


def encode(rows: int, columns: int, spec: EncodeSpec) -> list[Any]:
    """Arguments of an encoding kernel, outputs filled."""
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    args = tensors(
        x,
        np.zeros((rows, spec.lsb_bytes), np.uint8),
        np.zeros((rows, -(-columns // 8)), np.uint8),
        np.zeros(rows * spec.lsb_bytes, np.uint8),
        np.zeros(rows + 1, np.int32),
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, spec.groups), np.int32),
    )
    return args


def bench_encode(rows: int, columns: int, seconds: float) -> Row:
    spec = EncodeSpec(1, columns, SplitForm("signed", 4), 32, 127)
    kernel, args = compiled(encode_kernel(spec)), encode(rows, columns, spec)
    taken = fastest(lambda: kernel(*args), seconds)
    return Row("quantize_encode", f"{rows}x{columns}", taken * 1e3)


def numpy_gmacs(rows: int, channels: int, columns: int, seconds: float) -> float:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, columns)).astype(np.float32)
    b = rng.standard_normal((columns, channels)).astype(np.float32)
    return rows * channels * columns / fastest(lambda: a @ b, seconds) / 1e9


def bench_dense(form: str, rows: int, channels: int, columns: int, seconds: float) -> Row:
    cols, groups = TILE.cols, columns // 32
    panels = -(-channels // cols)
    grouped = form == "grouped"
    op = DenseOp(1, channels, columns, output="int32" if form == "int32" else "float32")
    if grouped:
        op = replace(op, group_size=32, has_min=True)
    spec = DenseKernel(op, SplitForm("signed", 4), 1, None, TILE)
    encode_spec = EncodeSpec(1, columns, SplitForm("signed", 4), 32, 127)
    encoding = encode(rows, columns, encode_spec)
    compiled(encode_kernel(encode_spec))(*encoding)
    rng = np.random.default_rng(0)
    dtype, *shape = spec.weight
    weight = rng.integers(0, 256, shape).astype(dtype)
    weight[:, columns:] = 8
    scales = rng.standard_normal((panels, groups, cols)).astype(np.float32)
    args = encoding[1:5]
    if form != "int32":
        args = [*args, encoding[5]]
    args = args + tensors(weight)
    if form != "int32":
        args += tensors(scales if grouped else scales[:, 0])
    args += tensors(np.zeros((panels, cols), np.float64 if grouped else np.int32))
    if grouped:
        args += [*tensors(scales), encoding[6]]
    args += tensors(np.zeros((rows, channels), spec.op.out_dtype))
    kernel = compiled(split_dense_kernel(spec))
    taken = fastest(lambda: kernel(*args), seconds)
    per_plane = 2 * rows * channels * columns / taken / 1e9
    reference = numpy_gmacs(rows, channels, columns, seconds)
    name = {"int32": "split_dense"}.get(form, f"split_dense_scaled {form}")
    return Row(name, f"{rows}x{channels}x{columns}", taken * 1e3, per_plane, reference)


def bench_matmul(
    dtype: str, rows: int, channels: int, columns: int, seconds: float, batch: int = 0
) -> Row:
    flags = ("d",) if batch else ()
    out = "int32" if dtype == "int8" else dtype
    spec = MatmulSpec(flags, flags, columns, channels, dtype, dtype, out, TILE)
    lead = (batch,) if batch else ()
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((*lead, rows, columns)) * 20).astype(dtype)
    b = (rng.standard_normal((*lead, columns, channels)) * 20).astype(dtype)
    args = tensors(a, b, np.zeros((*lead, rows, channels), out))
    kernel = compiled(matmul_kernel(spec))
    taken = fastest(lambda: kernel(*args), seconds)
    macs = max(batch, 1) * rows * channels * columns
    x, y = a.astype(np.float32), b.astype(np.float32)
    reference = macs / fastest(lambda: np.matmul(x, y), seconds) / 1e9
    shape = f"{batch}x " * bool(batch) + f"{rows}x{channels}x{columns}"
    return Row(f"matmul {dtype}", shape, taken * 1e3, macs / taken / 1e9, reference)


def measure(seconds: float) -> list[Row]:
    """The shapes of SmolLM2-135M (hidden 576, feed-forward 1536, 9 heads of 64)."""
    rows = [bench_encode(m, 576, seconds) for m in (512, 1)]
    for form in ("grouped", "channel", "int32"):
        rows += [bench_dense(form, m, 1536, 576, seconds) for m in (512, 8, 1)]
    rows.append(bench_dense("grouped", 512, 576, 1536, seconds))
    for dtype in ("float32", "int8"):
        rows += [bench_matmul(dtype, m, 1536, 576, seconds) for m in (512, 1)]
    rows += [
        bench_matmul("float32", 1, 49152, 576, seconds),
        bench_matmul("float64", 512, 1536, 18, seconds),
        bench_matmul("int8", 512, 1536, 32, seconds, batch=18),
        bench_matmul("float32", 512, 512, 64, seconds, batch=9),
        bench_matmul("float32", 512, 64, 512, seconds, batch=9),
        bench_matmul("float32", 1, 512, 64, seconds, batch=9),
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="time per measurement")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    arguments = parser.parse_args()
    threads = use_threads(arguments.threads)
    rows = measure(arguments.seconds)
    print(f"{TARGET.attrs['mcpu']}, {threads} threads; GMAC/s of all threads together")
    print(f"{'kernel':30} {'(batch x) MxNxK':>18} {'ms':>9} {'GMAC/s':>8} {'NumPy f32':>10}")
    for row in rows:
        figures = [f"{v:.1f}" if v else "" for v in (row.gmacs, row.numpy_gmacs)]
        print(
            f"{row.kernel:30} {row.shape:>18} {row.milliseconds:9.3f} "
            f"{figures[0]:>8} {figures[1]:>10}"
        )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"threads": threads, "rows": [asdict(row) for row in rows]}, file, indent=1)


if __name__ == "__main__":
    main()
