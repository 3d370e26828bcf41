"""A boundary whose cases misbehave, each in its way: what the driver is tested with."""

from __future__ import annotations

import os
import time
from typing import Any

from fuzz_boundaries import Boundary
from fuzz_damage import Wrong

from sparqle_tvm.errors import TextError


class Faulty(Boundary):
    """The case by its number."""

    name, share = "faulty", 1

    def case(self, rng: Any, state: Any, folder: Any) -> None:
        number = int(folder.name)
        if number == 1:
            raise TextError("typed")
        if number == 2:
            raise KeyError("untyped")
        if number == 3:
            raise Wrong("wrong")
        if number == 4:
            (folder / ".sparqle-x").mkdir()
        if number == 5:
            bytearray(b"x") * (5 << 29)
        if number == 6:
            os.kill(os.getpid(), 11)
        if number == 7:
            time.sleep(1000)


BOUNDARIES = {"faulty": Faulty()}
