"""Run a module on text, and keep what the choices need: one pass, in constant memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.kernel import option_sums
from sparqle_tvm.calibration.statistics import FACTORS, SAMPLED_ROWS
from sparqle_tvm.calibration.sums import (
    Outputs,
    Sums,
    encoded_activation,
    fresh_sums,
    row_counts,
    row_energy,
    statistics_of,
    weigh,
)
from sparqle_tvm.errors import CalibrationError, QuantizationError
from sparqle_tvm.numerics import EncodingChoice, max_exact
from sparqle_tvm.numerics.integers import require_int8
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.passes import ActivationInfo
from sparqle_tvm.target.cost.model import EncodedActivation

# Largest q of an input that arrives quantized, and the numbers of both int8 ends.
_INT8_LIMIT = 128


@dataclass(eq=False)
class Collector:
    """Runs one function of a module, and adds up the statistics of its encodings.

    Parameters
    ----------
    mod : tvm.IRModule
        A quantized module, as for `sparqle_tvm.compile`; it is not changed.
    function : str
        The function to run. Only what it calls itself is seen.
    others : tuple of str
        Functions that are compiled, too, as they are.

    Attributes
    ----------
    other_observations : dict of str to list
        The encodings and dense ops of the other functions, as `passes.CollectActivations` has
        them.

    Raises
    ------
    CalibrationError
        If the function encodes nothing (it has no quantized dense op), or digits are not of 4
        bits.
    """

    mod: tvm.IRModule
    function: str = "hidden"
    others: tuple[str, ...] = ()
    _sums: dict[str, Sums] = field(default_factory=dict, repr=False)
    _keys: npt.NDArray[np.uint64] = field(
        default_factory=lambda: np.zeros(0, np.uint64), repr=False
    )

    other_observations: dict[str, list[Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Compile the function so that it returns its activations."""
        from sparqle_tvm.compiler import lowering_passes, split_passes
        from sparqle_tvm.host.processor import host_target
        from sparqle_tvm.threads import use_threads

        dialect.register()
        only = tvm.IRModule({self.function: self.mod[self.function]})
        split = tvm.transform.Sequential(split_passes())(only)
        collect, lift = passes.CollectActivations(), passes.LiftChoices()
        observed = tvm.transform.Sequential([collect, lift])(split)
        self._lifted = lift.lifted.get(self.function, [])
        self._observations = collect.collected.get(self.function, [])
        for info, _, kind in self._observations:
            if kind == "input":
                require_int8(info.digit_bits, info.label, CalibrationError)
                self._sums[info.label] = Sums.of(info)
        if not self._sums:
            raise CalibrationError(
                f"the function {self.function} has no quantized dense op, so there is nothing to "
                "calibrate; use a model with integer weights"
            )
        if self.others:
            rest = tvm.IRModule({name: self.mod[name] for name in self.others})
            rest = tvm.transform.Sequential(split_passes())(rest)
            observed.update(rest)
            describe = passes.CollectActivations()
            tvm.transform.Sequential([describe])(rest)
            self.other_observations = describe.collected
        lowering = tvm.transform.Sequential(lowering_passes())
        executable = relax.build(observed, host_target(), relax_pipeline=lowering)
        use_threads()
        self._vm = relax.VirtualMachine(executable, tvm.cpu())

    def fresh(self) -> Collector:
        """A collector that has seen nothing, around the same compiled function."""
        other = copy.copy(self)
        other._sums = {label: fresh_sums(sums) for label, sums in self._sums.items()}
        other._keys = self._keys[:0]
        return other

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every encoding, by label, as `Calibration.check` takes them."""
        return {label: sums.digest for label, sums in self._sums.items()}

    def __getitem__(self, name: str) -> Any:
        """One of the other functions, as compiled."""
        return self._vm[name]

    def call(
        self, *arguments: Any, choices: Mapping[str, EncodingChoice] | None = None
    ) -> tuple[Any, Any]:
        """Call the function with a choice of factors; keep nothing.

        Parameters
        ----------
        arguments : arrays or TVM tensors
            Of the function.
        choices : mapping of label to EncodingChoice, optional
            Factors of encodings; by default none.

        Returns
        -------
        result, observed
            Of the function, and the tensors that `row_nnz` takes.
        """
        if self._lifted:
            arguments = (*arguments, *passes.choice_arguments(self._lifted, choices or {}))
        tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result, observed = self._vm[self.function](*tensors)
        return result, observed

    def encoded(
        self, observed: Any, choices: Mapping[str, EncodingChoice], windows: Mapping[str, str]
    ) -> list[EncodedActivation]:
        """The encodings of one call as the cost model takes them.

        Parameters
        ----------
        observed
            What `call` returned with these choices.
        choices, windows : mapping of label
            Factors (none by default) and window (the module's by default).
        """
        return [
            encoded_activation(info, x, choices, windows) for info, x in self._inputs_of(observed)
        ]

    def inputs(self, observed: Any) -> dict[str, npt.NDArray[Any]]:
        """What the encodings of one call took, by label: activations (M, K).

        Parameters
        ----------
        observed
            What `call` returned: float32 before quantization, int8 where it arrives quantized.
        """
        return {info.label: x for info, x in self._inputs_of(observed)}

    def _inputs_of(self, observed: Any) -> Iterator[tuple[ActivationInfo, npt.NDArray[Any]]]:
        for (info, _, kind), tensor in zip(self._observations, observed, strict=True):
            if kind == "input":
                yield info, tensor.numpy().reshape(-1, info.columns)

    def run(self, *arguments: Any, key: bytes = b"") -> Any:
        """Call the function, add up the statistics, and return the function's result.

        Parameters
        ----------
        arguments : arrays or TVM tensors
            Of the function.
        key : bytes
            Names the data (as the token ids); the sample of rows is drawn by it.

        Raises
        ------
        QuantizationError
            If an activation holds NaN or Inf.
        """
        result, observed = self.call(*arguments)
        groups = self._grouped(observed)
        rows = max(len(x) for x, _ in groups.values())
        keep, taken = self._draw(rows, key)
        for label, (x, outputs) in groups.items():
            if len(x) < rows:
                continue  # An output layer that sees only the last token: nothing to gain there.
            sums = self._sums[label]
            self._add(sums, x, weigh(sums, outputs, len(x)), keep, taken)
        return result

    def _grouped(self, observed: Any) -> dict[str, tuple[Any, Outputs]]:
        """By label: the input (M, K), and the energy of outputs and streams."""
        groups: dict[str, tuple[Any, Outputs]] = {}
        for (info, dense, kind), tensor in zip(self._observations, observed, strict=True):
            matrix = tensor.numpy()
            matrix = matrix.reshape(-1, matrix.shape[-1])
            if dense is None:
                groups[info.label] = (matrix, {})
            else:
                outputs = groups[info.label][1]
                outputs[info.dense.index(dense), kind] = row_energy(matrix)
        return groups

    def _draw(self, rows: int, key: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which old and new rows stay in the sample: those of the smallest keys.

        Returns
        -------
        keep, taken : int64
            Places in the old sample, and rows of the new data.
        """
        name = np.frombuffer(hashlib.sha256(key).digest()[:8], np.uint64)[0]
        fresh = np.random.default_rng([int(name), rows]).integers(0, 2**64, rows, dtype=np.uint64)
        order = np.argsort(np.concatenate([self._keys, fresh]), kind="stable")[:SAMPLED_ROWS]
        keep, taken = order[order < len(self._keys)], order[order >= len(self._keys)]
        taken = taken - len(self._keys)
        self._keys = np.concatenate([self._keys[keep], fresh[taken]])
        return keep, taken

    def _add(
        self,
        sums: Sums,
        x: npt.NDArray[Any],
        weight: npt.NDArray[np.float32],
        keep: npt.NDArray[np.int64],
        taken: npt.NDArray[np.int64],
    ) -> None:
        """Add the errors and stored digits of every option of one activation."""
        info = sums.info
        if info.qmax:
            amax = np.abs(x).max(axis=1)
            if not np.isfinite(amax).all():
                row = int(np.flatnonzero(~np.isfinite(amax))[0])
                raise QuantizationError(
                    f"{self.function}: the activation of {info.label} holds NaN or Inf in row "
                    f"{row}; check the input and the weights before that layer"
                )
            scale = np.maximum(amax, SMALLEST_AMAX) / np.float32(info.qmax)
        else:
            sums.exceeding += int(np.count_nonzero(x > max_exact(info.digit_bits, "signed")))
            x = x.astype(np.float32)
            scale = np.ones(len(x), np.float32)
        limit = info.qmax or _INT8_LIMIT
        sums.largest = max(sums.largest, float(np.abs(x).max()))
        found = option_sums(x, scale, weight, FACTORS, limit)
        sums.rows += len(x)
        sums.error = sums.error + found.error
        sums.stored = sums.stored + np.add.reduceat(found.stored, sums.unit_starts, axis=-1)
        fresh = row_counts(x[taken], scale[taken], limit, sums)
        old = fresh[:0] if sums.sample is None else sums.sample[keep]
        sums.sample = np.concatenate([old, fresh])

    def result(
        self,
        *,
        model_name: str,
        text_name: str,
        tokens: int,
        fisher: Mapping[str, npt.NDArray[np.float64]] | None = None,
    ) -> Calibration:
        """The statistics of all that was run.

        Parameters
        ----------
        model_name, text_name : str
            For messages and reports.
        tokens : int
            Tokens that were run.

        Raises
        ------
        CalibrationError
            If nothing was run.
        """
        if not tokens or not len(self._keys):
            raise CalibrationError("nothing was run, so there is nothing to calibrate with")
        # In the order of the keys, so that the order of runs does not matter.
        order = np.argsort(self._keys)
        gradients = fisher or {}
        encodings = tuple(
            statistics_of(sums, order, gradients.get(sums.info.label))
            for sums in self._sums.values()
            if sums.rows
        )
        return Calibration(model_name, text_name, tokens, encodings, self._keys[order])
