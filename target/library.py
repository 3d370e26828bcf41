"""Programs of dense ops for one accelerator, each generated and verified once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.codegen import generate
from sparqle_tvm.target.cost.tiling import Tiling, choose_tilings
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.schedule import default_decisions, schedule_with
from sparqle_tvm.target.tir import DenseSpec


@dataclass
class ProgramLibrary:
    """Programs by op and K chunk: ops that read one encoding share the chunk.

    Attributes
    ----------
    accelerator : Accelerator
        The machine.
    programs : dict of (DenseSpec, int) to Program
        Every program so far, by its op and its K chunk.
    """

    accelerator: Accelerator
    programs: dict[tuple[DenseSpec, int], Program] = field(default_factory=dict)

    def tiling(self, spec: DenseSpec, readers: Sequence[DenseSpec]) -> Tiling:
        """Tiles of an op that share their K chunk with the other readers of its encoding.

        Parameters
        ----------
        spec : DenseSpec
            The op.
        readers : sequence of DenseSpec
            All ops that read the encoding, this one among them. Those that no tile of their own
            fits do not count: they run elsewhere.

        Raises
        ------
        TargetError
            If no tile fits the buffers.
        """
        try:
            return self._joint(spec, readers)
        except TargetError:
            return self._joint(spec, [r for r in readers if r == spec or self._fits(r)])

    def _joint(self, spec: DenseSpec, readers: Sequence[DenseSpec]) -> Tiling:
        shapes = [reader.shape for reader in readers]
        tilings = choose_tilings(shapes, self.accelerator, spec.scheme)
        return tilings[list(readers).index(spec)]

    def _fits(self, spec: DenseSpec) -> bool:
        try:
            self._joint(spec, [spec])
        except TargetError:
            return False
        return True

    def program(self, spec: DenseSpec, tiling: Tiling, label: str = "") -> Program:
        """The program of an op with these tiles, of which the K chunk determines the others.

        Parameters
        ----------
        spec : DenseSpec
            The op.
        tiling : Tiling
            From :meth:`tiling`.
        label : str
            Name of the op in listings; the first op that needs a program names it.

        Raises
        ------
        TargetError
            If the tiles do not fit the buffers.
        CompileError
            If the op is not one that programs exist for.
        """
        key = (spec, tiling.k)
        if key not in self.programs:
            decisions = default_decisions(spec, self.accelerator, tiling)
            scheduled = schedule_with(spec, self.accelerator, decisions)
            self.programs[key] = generate(scheduled, spec, self.accelerator, label)
        return self.programs[key]
