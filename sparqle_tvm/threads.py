"""Number of threads that compiled kernels use.

TVM's default is half of the logical processors, because it assumes hyper-threading; on a machine
without it half of the cores stay idle. Its thread pool also binds threads, the caller included, to
fixed cores, so that two processes compete for the same ones. :func:`use_threads` mends both.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import tvm

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.processes import allowed_cpus

# TVM's name for: all threads may run on all of the processors given.
_SHARE_ALL_CORES = -3


class _State(threading.local):
    """Per thread, as TVM has a pool per thread: whether `use_threads` was called."""

    chosen = False


_STATE = _State()


def core_count() -> int:
    """Physical cores that this process may run on; logical processors where that is not known."""
    cores = set()
    for cpu in allowed_cpus():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def use_threads(count: int | None = None) -> int:
    """Set how many threads the kernels called from this thread use; call it before the first one.

    A thread pool that exists already can shrink, but not grow.

    Parameters
    ----------
    count : int, optional
        Default: the environment variable ``TVM_NUM_THREADS``, or else one per physical core.

    Returns
    -------
    int
        The number that will be used, at most one per processor.

    Raises
    ------
    InvalidArgumentError
        If the number is not positive.
    """
    if count is None:
        wanted = os.environ.get("TVM_NUM_THREADS", "")
        count = int(wanted) if wanted.isdecimal() else core_count()
    if count < 1:
        raise InvalidArgumentError(f"{count} threads: at least one is needed")
    cpus = [str(cpu) for cpu in allowed_cpus()]
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, min(count, len(cpus)), cpus)
    _STATE.chosen = True
    return int(tvm.get_global_func("runtime.NumThreads")())


def ensure_threads() -> None:
    """Use all cores in this thread, unless :func:`use_threads` said how many."""
    if not _STATE.chosen:
        use_threads()


def give_back_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it can be told to.

    Large tensors that come and go leave holes that no larger one fits into: a process that makes
    gigabytes of them grows by half of that.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
