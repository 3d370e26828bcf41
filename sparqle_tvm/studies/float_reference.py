"""Perplexity with float activations: what a run compares with, and no option of it changes.

So with a cache it is kept: the figure, not the executable, whose weights are the largest of all.
What is not kept yet may be computed in a process of its own, which shares nothing with the forms
that this one compiles meanwhile; most of compiling keeps one core busy.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparqle_tvm.processes import WorkerLostError, allowed_cpus, in_background
from sparqle_tvm.progress import Stages
from sparqle_tvm.results.run import ModelFile
from sparqle_tvm.studies.evaluation import evaluate
from sparqle_tvm.studies.inputs import INT8_ATTENTION, functions_of_a_run
from sparqle_tvm.target.accelerator import Accelerator

if TYPE_CHECKING:
    from sparqle_tvm.runtime.cache import ExecutableCache

LOG = logging.getLogger("sparqle_tvm.run")

STAGE_COUNT = 3
"""Import, compilation, run."""

_LEAST_BYTES = 1 << 25
"""Of a smaller model all is compiled before another process has begun."""

_MEMORY_RATIO = 32
"""What another process takes at most: so many times the file, in which weights have 4 bits."""


def float_perplexity(
    stages: Stages,
    path: Path,
    model: ModelFile,
    ids: Sequence[int],
    accelerator: Accelerator,
    options: Mapping[str, Any],
    cache: ExecutableCache | None,
    *,
    beside: bool,
) -> Callable[[], tuple[Mapping[str, float], bool]]:
    """What gives the perplexity with float activations, and whether it was kept.

    Keys are ``float`` and, if `options` ask for attention in integers, ``int8_attention``: with
    attention alone in integers.

    Parameters
    ----------
    stages : Stages
        Gets the time of the stages; skips them if there is nothing to do.
    path, model : Path, ModelFile
        The file.
    ids : sequence of int
        The tokens.
    accelerator, options
        What `sparqle_tvm.compile` is told besides.
    cache : ExecutableCache, optional
        Where it is looked for, and kept.
    beside : bool
        Whether to begin at once, in another process, where there are cores and memory for that.
    """
    from sparqle_tvm.host.processor import checked_host

    told = {"of": "float", "model": model.sha256, "tokens": list(ids), "host": checked_host(None)}
    told |= options
    title = f"perplexity of {model.name} with float activations, {len(ids)} tokens"
    given = (path, ids, accelerator, options)
    kept = None if cache is None else cache.find_numbers(told)
    if kept is not None:
        found = kept
        stages.skip(STAGE_COUNT)
        return lambda: (found, True)
    running = in_background(_in_another_process, *given) if beside and _has_room(path) else None

    def finish() -> tuple[Mapping[str, float], bool]:
        measured = None
        if running is not None:
            try:
                measured, seconds = running()
            except WorkerLostError as error:
                LOG.info("float activations run in this process: %s", error)
            else:
                stages.skip(STAGE_COUNT)
                stages.seconds.update(seconds)
        if measured is None:
            measured = _measure(stages, *given)
        if cache is not None:
            cache.keep_numbers(told, measured, title)
        return measured, False

    return finish


def _has_room(path: Path) -> bool:
    """Whether there are cores and memory for another process, and it would be worth one."""
    size = path.stat().st_size
    if size < _LEAST_BYTES or len(allowed_cpus()) < 2:
        return False
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return False
    return found is not None and int(found[1]) * 1024 > _MEMORY_RATIO * size


def _in_another_process(
    path: Path, ids: Sequence[int], accelerator: Accelerator, options: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """Perplexities, and seconds of the stages."""
    stages = Stages(STAGE_COUNT, progress=False)
    return _measure(stages, path, ids, accelerator, options), stages.seconds


def _measure(
    stages: Stages,
    path: Path,
    ids: Sequence[int],
    accelerator: Accelerator,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """Import, compile and run: both attentions together, which takes little longer than one."""
    from sparqle_tvm.api import compile as compile_model
    from sparqle_tvm.frontend import from_gguf

    with stages("import (float)"):
        imported = from_gguf(path, activations="float32", progress=False)
    both = options["attention"] == "int8"
    with stages("compile (float)"):
        functions = functions_of_a_run(imported, both_attentions=both, stored=True)
        told: dict[str, Any] = {**options, "weights": imported.weights}
        executable = compile_model(functions, accelerator, split=False, **told)
    with stages("run (float)"):
        found = {"float": evaluate(executable, ids).perplexity}
        if both:
            quantized = evaluate(executable, ids, hidden=INT8_ATTENTION)
            found["int8_attention"] = quantized.perplexity
    return found
