"""Compiled modules: callable functions, the encodings and the profile of a run, export."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.errors import CompileError, InvalidArgumentError, QuantizationError
from sparqle_tvm.files import replacing
from sparqle_tvm.models.token_limits import CHECKED_FUNCTIONS, TokenLimits
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.runtime.exported import (
    Facts,
    Manifest,
    append_tensors,
    check,
    mapped_tensors,
    seal,
    without_scopes,
)
from sparqle_tvm.runtime.launch import recording
from sparqle_tvm.runtime.profile import Profile
from sparqle_tvm.showing import html_table
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bundle import PROGRAMS_FUNCTION, unpack_bundle
from sparqle_tvm.threads import ensure_threads, use_threads


@dataclass(frozen=True)
class EncodingRecord:
    """What one encoding held in the last call.

    Attributes
    ----------
    info : passes.EncodingInfo
        Label, window, and the dense ops that read it.
    pbm : np.ndarray
        (M, ceil(K/8)) uint8, the precision bitmap.
    scale : np.ndarray or None
        (M, 1) float32.
    clipped : int
        Elements that bands clipped to the edge of the window.
    """

    info: passes.EncodingInfo
    pbm: np.ndarray
    scale: np.ndarray | None
    clipped: int = 0

    @property
    def label(self) -> str:
        """Name of the encoded tensor."""
        return self.info.label

    @property
    def window(self) -> str:
        """``"signed"`` or ``"unsigned"``."""
        return self.info.window

    @property
    def consumers(self) -> list[passes.DenseInfo]:
        """The dense ops that read the encoding."""
        return self.info.consumers


def _records(infos: list[passes.EncodingInfo], observed: Any) -> list[EncodingRecord]:
    """The observations of one call, in the order ``CollectEncodings`` returns them."""
    values = iter([value.numpy() for value in observed])
    records = []
    for info in infos:
        pbm = next(values)
        scale = next(values).reshape(-1, 1) if info.quantizes else None
        clipped = int(next(values)) if info.has_bands else 0
        bitmap = pbm.reshape(-1, pbm.shape[-1])
        records.append(EncodingRecord(info, bitmap, scale, clipped))
    return records


def _raise_if_non_finite(function: str, records: list[EncodingRecord]) -> None:
    for record in records:
        if record.scale is None or np.isfinite(record.scale).all():
            continue
        row = int(np.flatnonzero(~np.isfinite(record.scale))[0])
        raise QuantizationError(
            f"{function}: the activation of {record.label} holds NaN or Inf in row {row}; "
            "check the input and the weights before that layer"
        )


class _LastCall(threading.local):
    """Per thread: what is kept of its last call."""

    def __init__(self) -> None:
        self.profile = Profile([])
        self.encodings: list[EncodingRecord] = []


class Executable:
    """A compiled module: its functions are called by name, with NumPy arrays or TVM tensors.

    Parameters
    ----------
    executable : relax.VMExecutable or tvm.runtime.Module
        What ``relax.build`` made, or what was loaded.
    collected : mapping of function name to encodings
        What functions return beside their result.
    lifted : mapping of function name to encodings
        Encodings whose choices functions take as arguments; see :meth:`choose`.
    weights : mapping of function name to tensors
        What functions take behind all other arguments.
    cpu : str
        The processor that it was compiled for, as LLVM names it.

    Attributes
    ----------
    report : passes.PassReport
        What the passes did and skipped.

    Notes
    -----
    Threads may call it at once: their calls run one after the other. What is kept of a call,
    :meth:`profile` and :attr:`encodings`, belongs to the thread that made it.
    """

    def __init__(
        self,
        executable: Any,
        *,
        collected: Mapping[str, list[passes.EncodingInfo]] | None = None,
        lifted: Mapping[str, list[passes.LiftedEncoding]] | None = None,
        report: passes.PassReport | None = None,
        weights: Mapping[str, list[Any]] | None = None,
        cpu: str = "",
    ) -> None:
        self._executable = executable
        self._weights = dict(weights or {})
        self._collected = dict(collected or {})
        self._lifted = dict(lifted or {})
        use_threads()
        self._cpu = cpu
        # TVM's virtual machine has one set of registers.
        self._lock = threading.RLock()
        self._last = _LastCall()
        self.report = report if report is not None else passes.PassReport()
        self._choices: dict[str, list[Any]] = {}
        self.choose({})

    @cached_property
    def _vm(self) -> Any:
        """What runs the module: made when it is first asked for, which emits its machine code."""
        return relax.VirtualMachine(self._executable, tvm.cpu())

    @property
    def encodings(self) -> list[EncodingRecord]:
        """The encodings of this thread's last call of a function that returns them."""
        return self._last.encodings

    @encodings.setter
    def encodings(self, records: list[EncodingRecord]) -> None:
        """Forget them, for the memory that they take."""
        self._last.encodings = records

    def __call__(self, *args: Any) -> Any:
        """Refuse: what is called are its functions.

        Raises
        ------
        InvalidArgumentError
            Always.
        """
        raise InvalidArgumentError(
            'an executable holds functions that are called by name: executable["main"](...)'
        )

    def __getitem__(self, name: str) -> Any:
        """The compiled function ``name``, as a callable."""
        with self._lock:
            try:
                function = self._vm[name]
            except (AttributeError, ValueError, RuntimeError) as error:
                raise InvalidArgumentError(f"the executable has no function {name}") from error
            limits = TokenLimits.of(self._vm) if name in CHECKED_FUNCTIONS else None
        infos, weights = self._collected.get(name), self._weights.get(name, [])

        def call(*args: Any) -> Any:
            if limits is not None:
                limits.check(name, args)
            tensors = [_to_tensor(arg) for arg in args]
            with self._lock, recording() as records:
                ensure_threads()
                result = function(*tensors, *self._choices.get(name, []), *weights)
            self._last.profile = Profile(records)
            if infos is None:
                return result
            value, observed = result
            self._last.encodings = _records(infos, observed)
            _raise_if_non_finite(name, self._last.encodings)
            return value

        return call

    @cached_property
    def programs(self) -> list[Program]:
        """The accelerator programs that the module holds, each once; none with the engine `host`.

        Raises
        ------
        ProgramError
            If one is damaged.
        """
        with self._lock:
            try:
                function = self._vm[PROGRAMS_FUNCTION]
            except (AttributeError, ValueError, RuntimeError):
                return []
            bundles = [unpack_bundle(bundle.numpy().tobytes()) for bundle in function()]
        found = {program.to_bytes(): program for bundle in bundles for program in bundle}
        return list(found.values())

    @property
    def choosable(self) -> dict[str, passes.LiftedEncoding]:
        """The encodings that :meth:`choose` can set, by label; empty unless compiled for that."""
        return {e.label: e for encodings in self._lifted.values() for e in encodings}

    def choose(self, choices: Mapping[str, EncodingChoice]) -> None:
        """Set factors and bands for the calls from now on, if compiled with ``lift_choices``.

        Parameters
        ----------
        choices : mapping of label to EncodingChoice
            Encodings that are not named get none: their results are those of plain int8.

        Raises
        ------
        InvalidArgumentError
            If no encoding that takes choices has a label, or a choice does not suit its encoding.
        """
        unknown = sorted(set(choices) - set(self.choosable))
        if unknown:
            raise InvalidArgumentError(
                f"{unknown[0]}: no encoding of this name takes a choice; the report of the "
                "executable says what was left alone, choosable which do"
            )
        self._choices = {
            name: [tvm.runtime.tensor(a) for a in passes.choice_arguments(encodings, choices)]
            for name, encodings in self._lifted.items()
        }

    def profile(self) -> Profile:
        """What the accelerator did in this thread's last call; empty if no op is offloaded.

        An empty profile says why: ``Profile.reason``.
        """
        last = self._last.profile
        if len(last):
            return last
        if not self.programs:
            return Profile(
                [],
                reason="the module has no accelerator programs: its dense ops run as kernels of "
                'this CPU (compile with engine="simulator" for programs and their profile)',
            )
        return Profile([], reason="no function with accelerator programs was called in this thread")

    def __repr__(self) -> str:
        """What it was made of, and what runs it."""
        programs = len(self.programs)
        runs = f"{programs} accelerator programs" if programs else "kernels of this CPU"
        split = f"{len(self.report.split)} dense ops split, " if self.report.split else ""
        return f"<Executable: {split}{runs}>"

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], passes.PassReport.HEAD, self.report.rows())

    def inspect_source(self) -> str:
        """The assembly of every program."""
        return "\n".join(program.disassemble() for program in self.programs)

    def export(self, path: str | os.PathLike[str], *, title: str = "") -> None:
        """Write a shared library that :func:`load` reads; ``path`` ends in ``.so``.

        It carries a manifest, with the report and all else that is known of the module, and a
        checksum, see `runtime.exported`. The title says to people what it is.
        """
        target = Path(path)
        if target.suffix != ".so":
            raise InvalidArgumentError(f"{target}: an exported library has to end in .so")
        facts = Facts.of(self._collected, self._lifted, self.report, title)
        with replacing(target) as temporary:
            with without_scopes():
                self._executable.export_library(str(temporary))
            facts = replace(facts, weights=append_tensors(temporary, self._weights))
            seal(temporary, Manifest.of_this_machine(self._cpu, facts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Executable:
        """Load what :meth:`export` wrote, see `sparqle_tvm.load`."""
        dialect.register()
        manifest = check(path)
        facts = manifest.facts
        try:
            with without_scopes():
                module = tvm.runtime.load_module(str(path))
            loaded = cls(
                module,
                collected=facts.collected,
                lifted=facts.lifted,
                report=facts.report(),
                weights=mapped_tensors(path, facts.weights),
                cpu=manifest.cpu,
            )
            # Also refused here: what no machine can be made of.
            assert loaded._vm is not None
            return loaded
        except (RuntimeError, OSError, AttributeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CompileError(f"{path} is no exported executable: {reason}") from error


def _to_tensor(value: Any) -> Any:
    return tvm.runtime.tensor(value) if isinstance(value, np.ndarray) else value
