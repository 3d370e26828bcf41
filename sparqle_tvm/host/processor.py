"""The processor that this process runs on, and what counts as a processor."""

from __future__ import annotations

from functools import cache

import tvm
from tvm.target import codegen

from sparqle_tvm.errors import TargetError


@cache
def host_target() -> tvm.target.Target:
    """The processor as an ``llvm`` target: host kernels and the simulator are compiled for it."""
    return tvm.target.Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})


def require_cpu(target: tvm.target.Target | None) -> None:
    """Refuse a target that host kernels cannot be compiled for; None, for any, passes.

    Raises
    ------
    TargetError
        If it is no ``llvm`` target.
    """
    if target is not None and str(target.kind.name) != "llvm":
        raise TargetError(
            f"target {target.kind.name!r} is no CPU that kernels can be compiled for: build for "
            '"llvm", and name the accelerator in sparqle_tvm.pipeline("sparqle/edge") or compile'
        )
