"""Children end with their parents, however those end; commands end in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz_kills import _session as processes_of_session

from sparqle_tvm.processes import WorkerLostError, in_background, module_command

SPARQLE = str(Path(sys.executable).with_name("sparqle"))


def ended(leader: int) -> bool:
    """Whether all processes of a session end within some seconds."""
    until = time.monotonic() + 20
    while processes_of_session(leader) and time.monotonic() < until:
        time.sleep(0.02)
    return not processes_of_session(leader)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_of_a_killed_sweep_end(tmp_path, number):
    axis = ",".join(str(i / 500) for i in range(500))
    words = ["sweep", "--axis", f"msb_sparsity={axis}", "--workers", "2", "--out", "out.csv"]
    sweep = subprocess.Popen(
        [SPARQLE, *words], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    # The command, a resource tracker and two workers.
    while len(processes_of_session(sweep.pid)) < 4:
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.02)
    os.kill(sweep.pid, number)
    _, said = sweep.communicate(timeout=120)
    assert ended(sweep.pid)
    assert sweep.returncode == (-9 if number == signal.SIGKILL else 143)
    lines = said.decode().replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith("sparqle: ")]
    kept = "nothing was kept"
    if (tmp_path / "out.csv.progress").exists():
        kept = "finished points are kept in out.csv.progress; the same command goes on from there"
    assert told == ([] if number == signal.SIGKILL else [f"sparqle: interrupted; {kept}"])


def test_a_module_runs_until_its_pipe_is_closed(tmp_path):
    (tmp_path / "endless.py").write_text(
        "import sys, time\nprint(sys.argv[1], __name__, flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        module_command("endless", "word"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"word __main__\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == 1
    process.stdout.close()


# A command that is told to stop while compiled code calls back into Python: TVM makes an error of
# its own of what the handler raises.
SWALLOWED = """
import sys, os, signal
from sparqle_tvm import commands
from sparqle_tvm.cli import main

# Whoever runs the tests may ignore signals, and what is ignored stays so: shells do in the
# background, nohup does.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def run(arguments):
    try:
        os.kill(os.getpid(), {number})
    except KeyboardInterrupt:
        {then}

def finalized(arguments):
    import time, weakref
    class Thing: pass
    thing = Thing()
    reference = weakref.ref(thing, lambda _: (os.kill(os.getpid(), {number}), time.sleep(1)))
    del thing
    time.sleep(30)

if {finalized}:
    run = finalized
command = next(each for each in commands.COMMANDS if "_estimate" in each.__dict__)
command.__dict__["_estimate"] = run
sys.exit(main(["estimate"]))
"""


@pytest.mark.parametrize("then", ["pass", "raise ValueError('another')", "raise", "finalized"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_one_line_whatever_became_of_it(number, then):
    finalized = then == "finalized"
    code = SWALLOWED.format(
        number=int(number), then="pass" if finalized else then, finalized=finalized
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    kept = "all was done by then" if then == "pass" else "nothing was written"
    assert done.stderr == f"sparqle: interrupted; {kept}\n"
    assert done.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_are_ignored_stay_ignored(number):
    code = "import signal, os, sys\nfrom sparqle_tvm.cli import main\n"
    code += f"signal.signal({int(number)}, signal.SIG_IGN)\n"
    code += "from sparqle_tvm import cli\n"
    code += f"cli.execute = lambda arguments: os.kill(os.getpid(), {int(number)})\n"
    code += "sys.exit(main(['estimate']))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_call_in_another_process_gives_what_it_returns_or_raises():
    running = in_background(os.getpid), in_background(int, "x"), in_background(os._exit, 3)
    assert running[0]() not in (os.getpid(), 0)
    with pytest.raises(ValueError, match="invalid literal"):
        running[1]()
    with pytest.raises(WorkerLostError, match="before its time"):
        running[2]()
