"""Runs cases of boundaries in child processes with limits of time and memory, and judges them.

A child runs many cases, because importing TVM takes seconds; it says which case it begins. If it
dies or takes too long, that case is reported and another child goes on behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOOD = ("right", "typed")
"""Outcomes of cases that are in order: a right result, or a typed error in one line."""

SECONDS = 60
"""A case that takes so much time of the processor is reported."""
WAIT_SECONDS = 900
"""A case that takes longer is reported, whatever it waits for; a machine may be shared."""
MEMORY_MIB = 2048
"""A case that takes so much more than its child had before is reported."""
ADDRESS_SPACE_BYTES = 16 << 30


@dataclass
class Report:
    """What came of the cases of a boundary.

    Attributes
    ----------
    counts : Counter
        Cases by outcome: ``right``, ``typed``, ``untyped``, ``wrong``, ``leftover``, ``memory``,
        ``crash``, ``hang``.
    faults : list of str
        What was not in order: boundary, number of the case, what happened.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run(
    boundary: str,
    cases: range,
    seed: int,
    work: Path,
    deadline: float = float("inf"),
    module: str = "fuzz_boundaries",
) -> Report:
    """Run cases of a boundary of a module until they are done, or the time is over."""
    report, left = Report(), cases
    while left and time.monotonic() < deadline:
        done, fault = _run_child(boundary, left, seed, work, deadline, report, module)
        if fault is not None:
            kind, text = fault
            report.counts[kind] += 1
            report.faults.append(f"{boundary} {done}: {kind}: {text}")
        left = left[left.index(done) + 1 :] if done in left else range(0)
    return report


def _run_child(
    boundary: str,
    cases: range,
    seed: int,
    work: Path,
    deadline: float,
    report: Report,
    module: str,
) -> tuple[int, tuple[str, str] | None]:
    """The last case that a child began, and how it ended if not in order."""
    command = [sys.executable, __file__, "--child", boundary, "--seed", str(seed)]
    command += [
        "--module",
        module,
        "--first",
        str(cases.start),
        "--cases",
        str(len(cases)),
        "--work",
        str(work),
    ]
    current = cases.start
    with tempfile.TemporaryFile() as errors:
        # One thread: those of TVM wait for each other in a loop, which a busy machine is slow at.
        environment = {**os.environ, "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment
        )
        assert child.stdout is not None
        try:
            for line in _lines(child, deadline):
                if line is None:
                    over = time.monotonic() >= deadline
                    return (cases[-1], None) if over else (current, ("hang", "it takes too long"))
                record = json.loads(line)
                current = record["case"]
                if "outcome" in record:
                    report.counts[record["outcome"]] += 1
                    if record["outcome"] not in GOOD:
                        report.faults.append(
                            f"{boundary} {current}: {record['outcome']}: {record['text']}"
                        )
            # The pipe is closed, so it is about to end.
            child.wait(WAIT_SECONDS)
        finally:
            child.kill()
            child.communicate()
        if child.returncode == 0:
            return cases[-1], None
        errors.seek(0)
        said = errors.read()[-600:].decode(errors="replace").strip()
        return current, ("crash", f"exit code {child.returncode}: {said}")


def _lines(child: subprocess.Popen[bytes], deadline: float) -> Iterator[str | None]:
    """Lines that a child writes as they come; None if it takes too long, or the time is over."""
    assert child.stdout is not None
    selector, buffer = selectors.DefaultSelector(), b""
    selector.register(child.stdout, selectors.EVENT_READ)
    begin, used = time.monotonic(), _processor_seconds(child.pid)
    while True:
        if not selector.select(1):
            now = time.monotonic()
            late = now - begin > WAIT_SECONDS or _processor_seconds(child.pid) - used > SECONDS
            if late or now > deadline:
                yield None
                return
            continue
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            return
        begin, used = time.monotonic(), _processor_seconds(child.pid)
        *whole, buffer = (buffer + data).split(b"\n")
        yield from (line.decode() for line in whole)


def _processor_seconds(pid: int) -> float:
    """Time of the processor that a process took; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(arguments: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    sys.stdout = sys.stderr  # cases must not write where the records go
    boundary = importlib.import_module(arguments.module).BOUNDARIES[arguments.child]
    case_work = Path(tempfile.mkdtemp(prefix="case-", dir=arguments.work))
    os.chdir(case_work)
    try:
        _say(case=arguments.first)
        state = boundary.open(arguments.work / boundary.name)
        for number in range(arguments.first, arguments.first + arguments.cases):
            _say(case=number)
            folder = case_work / str(number)
            folder.mkdir()
            outcome, text = _judged(boundary, state, number, arguments.seed, folder)
            _say(case=number, outcome=outcome, text=text)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(case_work, ignore_errors=True)
    return 0


def _say(**record: Any) -> None:
    os.write(1, json.dumps(record).encode() + b"\n")


def _judged(boundary: Any, state: Any, number: int, seed: int, folder: Path) -> tuple[str, str]:
    from fuzz_damage import Wrong

    from sparqle_tvm.errors import SparqleError

    rng = random.Random(f"{boundary.name} {seed} {number}")
    before, printed = _peak_mib(), io.StringIO()
    outcome, text = "right", ""
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            boundary.case(rng, state, folder)
    except SparqleError as error:
        outcome, text = "typed", str(error)
        if not text.strip():
            outcome = "untyped"
    except Wrong as error:
        outcome, text = "wrong", str(error)
    except BaseException:
        outcome, text = "untyped", traceback.format_exc()[-1500:]
    grown = _peak_mib(reset=False) - before
    if grown > MEMORY_MIB:
        return "memory", f"{grown} MiB more; {text}"
    hidden = [str(p) for p in folder.rglob(".sparqle-*")]
    if hidden:
        return "leftover", f"{hidden}; {text}"
    return outcome, text


def _peak_mib(reset: bool = True) -> int:
    """Most memory that this process had since the last reset, or has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def prepare(names: Sequence[str], work: Path) -> None:
    """Make the whole files that the boundaries damage, in a process of its own."""
    subprocess.run([sys.executable, __file__, "--prepare", *names, "--work", str(work)], check=True)


def _prepare(names: Sequence[str], work: Path) -> int:
    from fuzz_boundaries import BOUNDARIES

    for name in names:
        (work / name).mkdir(parents=True)
        BOUNDARIES[name].prepare(work / name)
    return 0


def main() -> int:
    """Run as a child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child")
    parser.add_argument("--module")
    parser.add_argument("--prepare", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.prepare is not None:
        return _prepare(arguments.prepare, arguments.work)
    return _child(arguments)


if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [
        str(tests / name) for name in ("frontend", "models", "report", "target", "tuning")
    ]
    sys.exit(main())
