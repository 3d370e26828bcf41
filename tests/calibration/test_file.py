"""Calibrations in files: what is written comes back, what is broken is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sparqle_tvm.calibration import Calibration
from sparqle_tvm.calibration.loss import LossIncrease, MeasuredLoss
from sparqle_tvm.errors import CalibrationError, InvalidArgumentError

MEASURED = MeasuredLoss("weights", 0.5, 0.9, LossIncrease(7, 2.0, 2.1, 0.05, 0.01, 0.02, 0.003))


@pytest.fixture
def saved(tiny, tmp_path):
    path = tmp_path / "calib.npz"
    replace(tiny.calibration, measured=(MEASURED,)).save(path)
    return path


def rewrite(path, **changes):
    """Change the header, or replace arrays."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | changes.pop("header", {})
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(path, **{**arrays, **changes})


def test_what_is_written_comes_back(tiny, saved):
    read = Calibration.load(saved)
    assert read.fingerprint == tiny.calibration.fingerprint
    assert (read.model_name, read.text_name, read.tokens) == ("tiny", "prose", 200)
    assert read.measured == (MEASURED,)
    for mine, theirs in zip(read, tiny.calibration, strict=True):
        assert mine.label == theirs.label and mine.digest == theirs.digest
        np.testing.assert_array_equal(mine.stored, theirs.stored)
        np.testing.assert_array_equal(mine.sample, theirs.sample)
        np.testing.assert_allclose(mine.error, theirs.error, rtol=1e-6)
        for a, b in zip(mine.dense, theirs.dense, strict=True):
            assert (a.label, a.gain, a.share, a.stream) == (b.label, b.gain, b.share, b.stream)
            np.testing.assert_array_equal(a.column_energy, b.column_energy)
    again = read.merge(read)
    assert again.tokens == 400 and again.measured == ()
    np.testing.assert_array_equal(again.sample_keys, read.sample_keys)


def test_files_that_are_no_calibration(tmp_path, saved):
    with pytest.raises(CalibrationError, match="cannot be read: No such file"):
        Calibration.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(CalibrationError, match="is no calibration"):
        Calibration.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(CalibrationError, match="no array of a calibration"):
        Calibration.load(tmp_path / "other.npz")
    with pytest.raises(CalibrationError, match="it is no file"):
        Calibration.load("/dev/zero")
    whole = saved.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        saved.write_bytes(whole[:size])
        with pytest.raises(CalibrationError):
            Calibration.load(saved)


def test_other_versions_and_damage(saved):
    original = saved.read_bytes()
    for header, message in (
        ({"version": 99}, "of version 99, this program reads version 2"),
        ({"format": "recipe"}, "its format is not sparqle-calibration"),
        ({"encodings": [{}]}, "damaged"),
    ):
        saved.write_bytes(original)
        rewrite(saved, header=header)
        with pytest.raises(CalibrationError, match=message):
            Calibration.load(saved)
    saved.write_bytes(original)
    rewrite(saved, error=np.zeros((13, 5), np.float32))
    with pytest.raises(CalibrationError, match="damaged"):
        Calibration.load(saved)
    saved.write_bytes(original)
    rewrite(saved, factors=np.ones(13, np.float32))
    with pytest.raises(CalibrationError, match="calibrate again"):
        Calibration.load(saved)


def test_where_it_can_be_written(tiny, tmp_path):
    with pytest.raises(InvalidArgumentError, match="has to end in"):
        tiny.calibration.save(tmp_path / "calib.txt")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tiny.calibration.save(tmp_path / "no" / "calib.npz")


def test_another_model_is_refused(tiny):
    known = tiny.calibration
    digests = {e.label: e.digest for e in known}
    known.check(digests)
    known.check({**digests, "output": "f" * 64})  # what was not calibrated does not matter
    with pytest.raises(CalibrationError, match=r"another model \(tiny\).*blk_0_ffn_down has other"):
        known.check({**digests, "blk_0_ffn_down": "0" * 64})
    with pytest.raises(CalibrationError, match="blk_0_attn_q is missing"):
        known.check({k: v for k, v in digests.items() if k != "blk_0_attn_q"})


def test_rows_are_drawn_from_the_sample(tiny):
    known = tiny.calibration
    rows = known.row_nnz("blk_0_ffn_up", 300, seed=1)  # reads the encoding blk_0_ffn_gate
    assert rows.rows == 300 and rows.unit == 32 and rows.in_features == 64
    np.testing.assert_array_equal(rows.counts, known.row_nnz("blk_0_ffn_gate", 300, seed=1).counts)
    assert not np.array_equal(rows.counts, known.row_nnz("blk_0_ffn_up", 300, seed=2).counts)
    drawn = known.row_nnz("blk_0_ffn_up", 4000)
    assert drawn.msb_sparsity == pytest.approx(
        known["blk_0_ffn_gate"].msb_sparsity("signed"), abs=0.05
    )
    with pytest.raises(InvalidArgumentError, match="no encoding 'nobody'"):
        known.row_nnz("nobody", 4)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        known.row_nnz("blk_0_ffn_up", 0)
