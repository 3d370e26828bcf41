"""Child processes that end when their parent does, however it ends, and leave signals to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Runs a module as `python -m` does, until somebody closes the pipe that is its standard input.
_RUN_MODULE = """
import os, runpy, sys, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def module_command(module: str, *arguments: str) -> list[str]:
    """Command that runs ``python -m module`` as long as its standard input, a pipe, is open.

    The kernel closes the pipe when the parent ends, so nothing outlives it.
    """
    return [sys.executable, "-c", _RUN_MODULE, module, *arguments]


def end_with_parent() -> None:
    """End this process when its parent ends: for workers of `multiprocessing`, as initializer."""
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def signals_left_to_parent() -> Iterator[None]:
    """Start children within that do not see Ctrl-C: the parent does, and ends them.

    A terminal sends it to all of them, and each would print a traceback. The children inherit a
    mask; for us the signal comes at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
