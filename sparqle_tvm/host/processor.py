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


def checked_host(host: str | tvm.target.Target | None) -> tvm.target.Target:
    """A CPU target that a user names, by default this processor.

    Raises
    ------
    TargetError
        If TVM does not know it, or it is no CPU.
    """
    if host is None:
        return host_target()
    try:
        found = tvm.target.Target(host)
    except Exception as error:  # TVM raises what its parser comes upon
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise TargetError(f"host {host!r} is no target: {reason}") from error
    require_cpu(found)
    return found


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
            '"sparqle/edge" (or another accelerator, tvm.target.list_tags() has them) or for "llvm"'
        )
