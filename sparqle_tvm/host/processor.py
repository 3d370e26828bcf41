"""The processor that this process runs on."""

from __future__ import annotations

from functools import cache

import tvm
from tvm.target import codegen


@cache
def host_target() -> tvm.target.Target:
    """The processor as an ``llvm`` target: host kernels and the simulator are compiled for it."""
    return tvm.target.Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
