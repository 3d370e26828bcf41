"""The processor that this process runs on."""

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
    if found.kind.name != "llvm":
        raise TargetError(
            f"host {host!r} is no CPU that is compiled for; leave it out, or give an llvm target"
        )
    return found
