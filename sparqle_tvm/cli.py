# PYTHON_ARGCOMPLETE_OK
"""The command ``sparqle``. What is heavy is imported after the arguments are read.

Exit codes: 0; 2 after an error of the user, or of the machine (no space, no memory), in one line;
128 and the number of the signal that interrupted it (130 for Ctrl-C), in one line that says what
is kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from sparqle_tvm._versions import VERSION
from sparqle_tvm.commands import add_all, execute
from sparqle_tvm.errors import SparqleError
from sparqle_tvm.escaping import visible

EXIT_ERROR = 2
EXIT_SIGNAL = 128
COMPLETION = "_ARGCOMPLETE"
"""Set in the environment when a shell asks how a command line may go on."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Signals:
    """Turns the first signal into KeyboardInterrupt and remembers it; the next one ends us.

    What runs may lose the exception, or make another of it: compiled code calls back into Python.
    """

    def __init__(self) -> None:
        self.caught: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Take a signal."""
        self.caught = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    def _lost(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise again, a moment later, what came where nothing can be raised: in a finalizer."""
        if self.caught is None or not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)
            return
        signal.signal(signal.SIGALRM, self._again)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    def _again(self, _: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def caught_here(self) -> Iterator[None]:
        """Catch signals within, those aside that are ignored, as under ``nohup``."""
        before = {}
        hook, sys.unraisablehook = sys.unraisablehook, self._lost
        with suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self)
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """A message in which names from outside cannot steer the terminal."""
        return "\n".join(map(visible, super().format(record).splitlines()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    # TVM would import torch, where it is installed, for a faster way between their tensors.
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    signals = _Signals()
    with signals.caught_here():
        code = _checked(argv, signals)
    if argv is None:
        # All is done. While Python goes down, a signal would only print a traceback.
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    return code


def _checked(argv: Sequence[str] | None, signals: _Signals) -> int:
    arguments = argparse.Namespace(verbose=False, kept=None)
    try:
        try:
            parser = _parser()
            if COMPLETION in os.environ:
                import argcomplete

                argcomplete.autocomplete(parser)
            parser.parse_args(argv, arguments)
            _start_log(arguments.verbose)
            execute(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads standard output has enough.
        _drop_output()
        return EXIT_ERROR
    except BaseException as error:
        if signals.caught is not None:
            return _interrupted(signals.caught, arguments)
        if isinstance(error, KeyboardInterrupt):
            return _interrupted(signal.SIGINT, arguments)
        message = _message(error)
        if message is None or arguments.verbose:
            raise
        _drop_output()
        print(f"sparqle: error: {visible(' '.join(message.split()))}", file=sys.stderr)
        return EXIT_ERROR
    return 0 if signals.caught is None else _interrupted(signals.caught, arguments, done=True)


def _message(error: BaseException) -> str | None:
    """What an error says that a user or the machine caused; None for any other."""
    if isinstance(error, SparqleError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"there is not enough memory {error}; ask for less at a time"
    if isinstance(error, OSError):
        where = "standard output cannot be written" if error.filename is None else error.filename
        return f"{where}: {error.strerror or error}"
    return None


def _interrupted(number: int, arguments: argparse.Namespace, *, done: bool = False) -> int:
    kept = arguments.kept(arguments) if arguments.kept else "nothing was written"
    kept = "all was done by then" if done else kept
    _drop_output()
    with suppress(OSError):  # the terminal may be gone
        print(f"sparqle: interrupted; {visible(kept)}", file=sys.stderr)
    return EXIT_SIGNAL + number


def _drop_output() -> None:
    """Forget what standard output still holds if it does not take it: Python would try again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _start_log(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line, as all that is wrong."""
        self.exit(EXIT_ERROR, f"sparqle: error: {visible(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sparqle",
        description="Split precision (sub-precision sparsity) for quantized language models.",
        epilog='Completion in bash and zsh: eval "$(register-python-argcomplete sparqle)"',
    )
    parser.add_argument("--version", action="version", version=f"sparqle {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_all(commands)
    return parser
