"""Sweeps as they run: on processes, on a Dask cluster, killed and started again."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep import Sweep, evaluate_point, run_sweep
from sparqle_tvm.studies.sweep.execute import BATCH_POINTS

FIXED = {"model": "smollm2-135m", "phase": "decode", "seq": 32}
SWEEP = Sweep.grid({"msb_sparsity": [0.0, 0.5, 1.0], "dram_bytes_per_cycle": [8, 64]}, FIXED)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_has_a_row_for_each_point_in_order(tmp_path):
    result = run_sweep(SWEEP, tmp_path / "out.csv", workers=1, progress=False)
    rows = read_csv(tmp_path / "out.csv")
    assert len(rows) == len(SWEEP.points) == 6
    for row, point, figures in zip(rows, SWEEP.points, result.results, strict=True):
        assert {name: row[name] for name in point} == {n: str(v) for n, v in point.items()}
        assert figures == evaluate_point(point)
        assert {name: row[name] for name in figures} == {n: str(v) for n, v in figures.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_json_has_the_same_rows(tmp_path):
    result = run_sweep(SWEEP, tmp_path / "out.json", workers=2, progress=False)
    assert json.loads((tmp_path / "out.json").read_text()) == result.rows


def test_more_bandwidth_is_never_slower_and_more_zeros_neither():
    def cycles(**changes):
        return evaluate_point({**FIXED, "msb_sparsity": 0.5, **changes})[
            "split_dense_layers_cycles"
        ]

    assert cycles(dram_bytes_per_cycle=64) < cycles(dram_bytes_per_cycle=8)
    assert cycles(msb_sparsity=1.0) < cycles(msb_sparsity=0.0)


def test_memory_and_node_choose_the_table_digits_their_distribution():
    found = evaluate_point({**FIXED, "memory": "ddr4", "node": "45nm"})
    assert found["energy_table"] == "45nm + DDR4"
    assert evaluate_point({**FIXED, "target": "sparqle/server"})["energy_table"] == "7nm + HBM2"
    assert "memory = 'TAPE' must be one of" in evaluate_point({**FIXED, "memory": "tape"})["error"]
    sparsity = [evaluate_point({**FIXED, "digit_bits": k})["msb_sparsity_mean"] for k in (2, 4, 8)]
    assert sparsity == sorted(sparsity, reverse=True)
    seqs = (8191, 8192)  # Decode needs one more.
    assert [evaluate_point({**FIXED, "seq": n})["beyond_positions"] for n in seqs] == [False, True]


def test_a_point_that_cannot_be_is_a_row_with_its_reason(tmp_path):
    sweep = Sweep.grid({"weight_buffer_bytes": [16, 1 << 20]}, FIXED)
    result = run_sweep(sweep, tmp_path / "out.csv", workers=1, progress=False)
    bad, good = read_csv(tmp_path / "out.csv")
    assert result.failed == 1
    assert "weight_buffer_bytes = 16 is too small" in bad["error"]
    assert good["error"] == ""


def test_killed_at_any_moment_it_ends_with_the_same_file(tmp_path):
    axes = {"msb_sparsity": [i / 40 for i in range(40)], "seq": [16, 48]}
    fixed = {"model": "smollm2-135m", "phase": "prefill"}
    sweep = Sweep.grid(axes, fixed)
    run_sweep(sweep, tmp_path / "whole.csv", workers=2, progress=False)
    out, kept = tmp_path / "killed.csv", tmp_path / "killed.csv.progress"
    script = tmp_path / "again.py"
    # Processes are spawned, so what starts them is a file with a guard.
    script.write_text(
        "from sparqle_tvm.studies.sweep import Sweep, run_sweep\n"
        "if __name__ == '__main__':\n"
        f"    sweep = Sweep.grid({axes}, {fixed})\n"
        f"    run_sweep(sweep, {str(out)!r}, workers=1, progress=False)\n"
    )
    kills = 0
    for wanted in (1, 3 * BATCH_POINTS):
        process = subprocess.Popen([sys.executable, script], start_new_session=True)
        while process.poll() is None and count_done(kept) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills, "the sweep ended before it could be killed"
    assert count_done(kept) < len(sweep.points)
    subprocess.run([sys.executable, script], check=True)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not kept.exists()


def count_done(path) -> int:
    if not path.exists():
        return 0
    with sqlite3.connect(path, timeout=10) as database:
        try:
            (count,) = database.execute("SELECT COUNT(*) FROM done").fetchone()
        except sqlite3.OperationalError:  # the table is not there yet
            count = 0
    database.close()
    return count


def test_what_is_kept_of_another_sweep_is_refused_unless_begun_anew(tmp_path):
    out = tmp_path / "out.csv"
    kept = tmp_path / "out.csv.progress"
    kept.write_bytes(b"not a database" * 100)
    with pytest.raises(InvalidArgumentError, match=r"is damaged .*--restart"):
        run_sweep(SWEEP, out, workers=1, progress=False)
    run_sweep(SWEEP, out, workers=1, restart=True, progress=False)
    assert len(read_csv(out)) == 6


@pytest.mark.parametrize("name", ["out.txt", "none/out.csv"])
def test_table_that_cannot_be_written(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match=r"out\."):
        run_sweep(SWEEP, tmp_path / name, progress=False)


def test_at_least_one_process(tmp_path):
    with pytest.raises(InvalidArgumentError, match="at least one process"):
        run_sweep(SWEEP, tmp_path / "out.csv", workers=0, progress=False)


# The cluster's event loops and sockets close after the block; not our code.
@pytest.mark.filterwarnings("default")
def test_dask_cluster_gives_the_same_table(tmp_path):
    distributed = pytest.importorskip("distributed")
    run_sweep(SWEEP, tmp_path / "here.csv", workers=1, progress=False)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        run_sweep(SWEEP, tmp_path / "there.csv", scheduler=address, progress=False)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


@pytest.mark.filterwarnings("default")
def test_scheduler_that_does_not_answer(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(InvalidArgumentError, match="no Dask scheduler answers"):
        run_sweep(SWEEP, tmp_path / "out.csv", scheduler="tcp://127.0.0.1:9", progress=False)
