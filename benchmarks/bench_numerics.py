"""Time of the NumPy numerics on a 2048 x 4096 int8 matrix; prints seconds, asserts nothing.

Run: ``python benchmarks/bench_numerics.py [--rows 2048] [--columns 4096]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from sparqle_tvm import numerics


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs: the least disturbed one."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.rows, args.columns)).astype(np.float32)
    narrow, _ = numerics.quantize_per_token(x)
    wide = rng.integers(-128, 120, x.shape).astype(np.int8)
    weights = rng.integers(-8, 8, (256, args.columns)).astype(np.int8)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("quantize_per_token", partial(numerics.quantize_per_token, x))
    ]
    for kind, q in (("normal", narrow), ("uniform", wide)):
        for window in ("signed", "unsigned"):
            sliced = numerics.encode(q, window=window)
            label = f"({kind}, {window}, s = {sliced.msb_sparsity:.2f})"
            calls += [
                (f"encode {label}", partial(numerics.encode, q, window=window)),
                (f"decode {label}", sliced.decode),
                (f"dot with N = 256 {label}", partial(numerics.dot, sliced, weights)),
            ]
    print(f"{args.rows} x {args.columns}, best of {args.repeats}")
    for name, call in calls:
        print(f"{name:56}{best_seconds(call, args.repeats):8.3f} s")


if __name__ == "__main__":
    main()
