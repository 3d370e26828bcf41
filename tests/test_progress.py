"""Progress bars: one on a terminal, none in a log."""

from __future__ import annotations

import io

import pytest

from sparqle_tvm.progress import Stages, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, False), (Terminal, True)])
def test_a_bar_keeps_out_of_logs(monkeypatch, stream, shown):
    place = stream()
    monkeypatch.setattr("sys.stderr", place)
    with progress_bar(total=2, desc="work", unit="thing") as bar:
        bar.update()
        bar.refresh()
        bar.update()
    stages = Stages(1, progress=True)
    with stages("build"):
        pass
    text = place.getvalue()
    assert ("work" in text) == shown
    assert bool(text) == shown
    # It goes when all is done.
    assert text.endswith("\r") == shown


def test_no_bar_if_it_is_not_wanted(monkeypatch):
    place = Terminal()
    monkeypatch.setattr("sys.stderr", place)
    with progress_bar(progress=False, total=1) as bar:
        bar.update()
    assert place.getvalue() == ""
