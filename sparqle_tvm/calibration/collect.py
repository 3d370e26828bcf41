"""Run a module on text, and keep what the choices need: one pass, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from sparqle_tvm import dialect, passes
from sparqle_tvm.calibration import sums
from sparqle_tvm.calibration.calibration import Calibration
from sparqle_tvm.calibration.option_kernel import option_sums
from sparqle_tvm.calibration.statistics import FACTORS, SAMPLED_ROWS, EncodingStatistics
from sparqle_tvm.errors import CalibrationError, QuantizationError
from sparqle_tvm.numerics import WINDOWS, EncodingChoice
from sparqle_tvm.numerics.integers import require_int8
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.passes import ActivationInfo
from sparqle_tvm.target.cost.model import EncodedActivation

# An input that arrives quantized is clipped to this magnitude, far outside of both windows.
_INT8_LIMIT = 128


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

    def __init__(
        self, mod: tvm.IRModule, function: str = "hidden", others: tuple[str, ...] = ()
    ) -> None:
        from sparqle_tvm.compiler import lowering_passes, split_passes
        from sparqle_tvm.host.processor import host_target
        from sparqle_tvm.threads import use_threads

        dialect.register()
        split = tvm.transform.Sequential(split_passes())
        collect, lift = passes.CollectActivations(), passes.LiftChoices()
        observing = tvm.transform.Sequential([collect, lift])
        compiled = observing(split(tvm.IRModule({function: mod[function]})))
        self.function = function
        self._lifted = lift.lifted.get(function, [])
        self._observations = collect.collected.get(function, [])
        # By label, and what the rows of the samples were drawn by. Replaced by every run.
        self._seen: dict[str, EncodingStatistics] = {}
        self._centres: dict[str, int] = {}
        self._keys = np.zeros(0, np.uint64)
        for info, _, kind in self._observations:
            if kind == "input":
                require_int8(info.digit_bits, info.label, CalibrationError)
                self._seen[info.label] = sums.nothing_seen(info)
                signed = not info.dtype.startswith("u")
                centred = WINDOWS["signed"].digits(4, signed=signed, zero_point=info.zero_point)
                self._centres[info.label] = centred.centre
        if not self._seen:
            raise CalibrationError(
                f"the function {function} has no quantized dense op, so there is nothing to "
                "calibrate; use a model with integer weights"
            )
        describe = passes.CollectActivations()
        if others:
            rest = split(tvm.IRModule({name: mod[name] for name in others}))
            compiled.update(rest)
            tvm.transform.Sequential([describe])(rest)
        self.other_observations = describe.collected
        lowering = tvm.transform.Sequential(lowering_passes())
        executable = relax.build(compiled, host_target(), relax_pipeline=lowering)
        use_threads()
        self._vm = relax.VirtualMachine(executable, tvm.cpu())

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every encoding, by label, as `Calibration.check` takes them."""
        return {label: e.digest for label, e in self._seen.items()}

    def __getitem__(self, name: str) -> Any:
        """One of the other functions, as compiled."""
        return self._vm[name]

    def call(
        self, *arguments: Any, choices: Mapping[str, EncodingChoice] | None = None
    ) -> tuple[Any, Any]:
        """Call the function with the factors of some encodings, by label; keep nothing.

        Returns
        -------
        result, observed
            Of the function, and the tensors that `encoded` and `inputs` take.
        """
        if self._lifted:
            arguments = (*arguments, *passes.choice_arguments(self._lifted, choices or {}))
        tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result, observed = self._vm[self.function](*tensors)
        return result, observed

    def encoded(
        self, observed: Any, choices: Mapping[str, EncodingChoice], windows: Mapping[str, str]
    ) -> list[EncodedActivation]:
        """The encodings of one call with these choices as the cost model takes them.

        Encodings without an entry have no factors, and the module's window.
        """
        return [
            sums.encoded_activation(info, x, choices, windows)
            for info, x in self._inputs_of(observed)
        ]

    def inputs(self, observed: Any) -> dict[str, npt.NDArray[Any]]:
        """What the encodings of one call took, by label (M, K).

        Activations are float32 before quantization, int8 or uint8 where they arrive quantized.
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
        more = {
            label: self._seen[label].merged(self._statistics(label, x, outputs, taken), keep)
            for label, (x, outputs) in groups.items()
            # An output layer that sees only the last token has nothing to gain.
            if len(x) == rows
        }
        self._seen = self._seen | more
        return result

    def _grouped(self, observed: Any) -> dict[str, tuple[Any, sums.Outputs]]:
        """By label: the input (M, K), and the energy of outputs and streams."""
        groups: dict[str, tuple[Any, sums.Outputs]] = {}
        for (info, dense, kind), tensor in zip(self._observations, observed, strict=True):
            matrix = tensor.numpy()
            matrix = matrix.reshape(-1, matrix.shape[-1])
            if dense is None:
                groups[info.label] = (matrix, {})
            else:
                outputs = groups[info.label][1]
                outputs[info.dense.index(dense), kind] = sums.row_energy(matrix)
        return groups

    def _draw(self, rows: int, key: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which old and new rows are the sample now: those of the smallest keys, in their order.

        Returns
        -------
        keep, taken : int64
            Places in the old sample with the rows taken behind it, and these rows of the new data.
        """
        name = np.frombuffer(hashlib.sha256(key).digest()[:8], np.uint64)[0]
        fresh = np.random.default_rng([int(name), rows]).integers(0, 2**64, rows, dtype=np.uint64)
        old, keys = len(self._keys), np.concatenate([self._keys, fresh])
        order = np.argsort(keys, kind="stable")[:SAMPLED_ROWS]
        self._keys = keys[order]
        new = order >= old
        return np.where(new, old + np.cumsum(new) - 1, order), order[new] - old

    def _statistics(
        self, label: str, x: npt.NDArray[Any], outputs: sums.Outputs, taken: npt.NDArray[np.int64]
    ) -> EncodingStatistics:
        """Errors and stored digits of every option of one activation, the rows `taken` a sample."""
        known = self._seen[label]
        scale, plain = np.ones(len(x), np.float32), x
        if known.qmax:
            amax = np.abs(x).max(axis=1)
            if not np.isfinite(amax).all():
                row = int(np.flatnonzero(~np.isfinite(amax))[0])
                raise QuantizationError(
                    f"{self.function}: the activation of {label} holds NaN or Inf in row {row}; "
                    "check the input and the weights before that layer"
                )
            scale = np.maximum(amax, SMALLEST_AMAX) / np.float32(known.qmax)
        else:
            # The unsigned window lies at 0, the centred one around the zero point.
            plain = x.astype(np.float32)
            x = plain - np.float32(self._centres[label])
        limit = known.qmax or _INT8_LIMIT
        weight, dense = sums.weigh(known, outputs, len(x))
        error, stored = option_sums(x, scale, weight, FACTORS, limit)
        if x is not plain:
            stored[1] = option_sums(plain, scale, weight, FACTORS, limit)[1][1]
        return replace(
            known,
            rows=len(x),
            largest=float(np.abs(x).max()),
            error=error,
            stored=known.by_unit(stored),
            sample=sums.row_counts(x[taken], scale[taken], limit, known),
            dense=dense,
        )

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
        gradients = fisher or {}
        encodings = tuple(
            replace(e, fisher=gradients.get(label)) for label, e in self._seen.items() if e.rows
        )
        return Calibration(model_name, text_name, tokens, encodings, self._keys)
