"""The figure that a run compares with: kept, from another process, or from this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_files import write_tiny_model

from sparqle_tvm.numerics.kv_cache import parse_kv
from sparqle_tvm.processes import WorkerLostError
from sparqle_tvm.progress import Stages
from sparqle_tvm.results.run import ModelFile
from sparqle_tvm.runtime.cache import ExecutableCache
from sparqle_tvm.studies import float_reference
from sparqle_tvm.studies.float_reference import STAGE_COUNT, float_perplexity
from sparqle_tvm.target.accelerator import PRESETS

MODEL = ModelFile("tiny", "0" * 64)
STAGES = {"import (float)", "compile (float)", "run (float)"}


def test_it_is_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write_tiny_model(tmp_path), ExecutableCache(tmp_path / "cache")

    def found(attention: str, **where: Any) -> tuple[Any, set[str]]:
        stages = Stages(STAGE_COUNT, progress=False)
        options = {"attention": attention, "kv": {}, "default_kv": parse_kv("int8")}
        given = (stages, path, MODEL, range(1, 25), PRESETS["sparqle/edge"], options)
        return float_perplexity(*given, **where)(), set(stages.seconds)

    (here, kept), stages = found("int8", cache=None, beside=False)
    assert not kept
    assert stages == STAGES
    assert set(here) == {"float", "int8_attention"}
    assert here["float"] != here["int8_attention"]
    # The model is too small for another process, if nobody says otherwise.
    monkeypatch.setattr(float_reference, "in_background", None)
    assert found("int8", cache=cache, beside=True) == ((here, False), STAGES)
    assert found("int8", cache=cache, beside=True) == ((here, True), set())
    monkeypatch.undo()
    monkeypatch.setattr(float_reference, "_has_room", lambda _: True)
    assert found("int8", cache=None, beside=True) == ((here, False), STAGES)

    def lost(*_: Any) -> Any:
        def result() -> Any:
            raise WorkerLostError("gone")

        return result

    monkeypatch.setattr(float_reference, "in_background", lost)
    assert found("float", cache=cache, beside=True) == (({"float": here["float"]}, False), STAGES)
