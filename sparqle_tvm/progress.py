"""Progress bars: a plain one, and one over the named stages of long work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def progress_bar(*, progress: bool = True, **options: Any) -> Any:
    """A progress bar on standard error, a ``tqdm`` with these options.

    There is none if it is not wanted, or if standard error is no terminal: it would fill a log.
    It goes when all is done.
    """
    return tqdm(disable=None if progress else True, **{"leave": False, **options})


class Stages:
    """Names the stage that runs, of `count`, on a progress bar, and keeps the time of each.

    Attributes
    ----------
    seconds : dict of str to float
        Wall time of each finished stage.
    """

    def __init__(self, count: int, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._count = count
        self._bar = progress_bar(progress=progress, total=count, unit="stage", desc="start")

    def skip(self, count: int) -> None:
        """So many stages will not run."""
        self._count -= count
        self._bar.total = self._count
        self._close_if_done()

    def _close_if_done(self) -> None:
        if len(self.seconds) == self._count:
            self._bar.close()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the ``with`` block as the stage ``name``."""
        self._bar.set_description(name)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._bar.close()  # so that an error message begins on a line of its own
            raise
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self._bar.update()
        self._close_if_done()
