"""Child processes that end when their parent does, and leave signals to it; workers in them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from sparqle_tvm.errors import InvalidArgumentError

MAX_WORKERS = 1024

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


def in_background(function: Callable[..., Any], *operands: Any) -> Callable[[], Any]:
    """Call a function in a process of its own, which ends with this one; what waits for it.

    The result, or what it raises, comes from a call of that. Both have to be picklable.

    Raises
    ------
    WorkerLostError
        If the process ended before its time; when it is waited for.
    """
    context = get_context("spawn")  # Not forked: the parent may have threads.
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, operands), daemon=True)
    with signals_left_to_parent():
        process.start()
    sender.close()

    def result() -> Any:
        try:
            found, problem = receiver.recv()
        except EOFError as error:
            raise WorkerLostError(
                "a process ended before its time, maybe for want of memory"
            ) from error
        process.join()
        if problem is not None:
            raise problem
        return found

    return result


def _answer(sender: Any, function: Callable[..., Any], operands: tuple[Any, ...]) -> None:
    end_with_parent()
    try:
        found, error = function(*operands), None
    except Exception as caught:
        found, error = None, caught
    sender.send((found, error))


class WorkerLostError(InvalidArgumentError):
    """A worker process ended before its time; what it was at is lost."""


def require_workers(workers: int | None) -> None:
    """Refuse a number of processes that cannot be: InvalidArgumentError."""
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise InvalidArgumentError(
            f"workers = {workers}: at least one process is needed, {MAX_WORKERS} at most"
        )


def on_workers(
    stack: ExitStack, workers: int | None, scheduler: str | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How to submit a call to workers, and to wait for some calls.

    Parameters
    ----------
    stack : ExitStack
        Ends the workers when it is left.
    workers : int, optional
        Processes of this machine; by default one for each core.
    scheduler : str, optional
        Address of a Dask scheduler (``tcp://host:8786``) whose workers do it instead. Dask gives
        the calls of a worker that dies to another.

    Returns
    -------
    submit, completed : callable
        ``submit(function, *operands)`` gives a future; ``completed(futures)`` goes over them as
        they are done, and raises WorkerLostError if a process ended before its time.

    Raises
    ------
    InvalidArgumentError
        If Dask is not installed or no scheduler answers.
    """
    return _on_dask(stack, scheduler) if scheduler else on_processes(stack, workers)


def allowed_cpus() -> list[int]:
    """Numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def on_processes(
    stack: ExitStack, workers: int | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How to submit a call to processes (by default one for each core), and to wait for some."""
    count = workers or len(allowed_cpus())
    # Not forked: the parent may have threads.
    others = set(active_children())
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=end_with_parent)

    def close(error: type[BaseException] | None, *_: object) -> None:
        # After an error or a signal nobody waits for what the processes are at.
        for process in set(active_children()) - others if error else ():
            process.terminate()
        pool.shutdown(cancel_futures=True)

    def submit(*call: Any) -> Future[Any]:
        with signals_left_to_parent():
            return pool.submit(*call)

    def completed(futures: Sequence[Future[Any]]) -> Iterator[Future[Any]]:
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                raise WorkerLostError(
                    "a worker process ended before its time, maybe for want of memory; what is "
                    "done is kept, start again to go on, with fewer --workers"
                )
            yield future

    stack.push(close)
    return submit, completed


def _on_dask(stack: ExitStack, address: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise InvalidArgumentError(
            'a Dask cluster needs the extra "dask": pip install "sparqle-tvm[dask]"'
        ) from error
    try:
        client = stack.enter_context(distributed.Client(address, timeout="10s"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"no Dask scheduler answers at {address!r}: {error}; start one with `dask scheduler`"
        ) from error

    def submit(function: Callable[..., Any], *operands: Any) -> Any:
        return client.submit(function, *operands, pure=False)

    return submit, distributed.as_completed
