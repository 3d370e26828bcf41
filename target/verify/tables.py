"""What the verifier's tables and results mean, shared by its Python and its compiled part."""

from __future__ import annotations

from enum import IntEnum


class Tag(IntEnum):
    """What lies in a tile, where that matters; other kinds of tiles have numbers from 1 on."""

    DEAD = -1
    ACC = 0


class Fault(IntEnum):
    """What `check_tiles` finds."""

    NONE = 0
    NOT_WRITTEN = 1
    WRONG_TILE = 2
    EARLY_READ = 3
    EARLY_WRITE = 4
    UNORDERED_WRITE = 5
    LOST = 6
    ROWS_DIFFER = 7
    CHANNELS_DIFFER = 8
    COLUMNS_DIFFER = 9
    COVERED = 10
    INCOMPLETE = 11
    STATE = 12
    WRONG_PLACE = 13
    STORED_TWICE = 14
    FULL = 15


class TouchColumn(IntEnum):
    """Columns of the table of touches: bytes [LO, HI) of a buffer, as a tile of a tensor.

    AXIS: 0 if its rows are rows of activations, 1 for channels. DIVISIBLE: whether rows of it may
    be read alone. ROW and COL are -1 where they follow from the step's other operands.
    """

    MODE = 0
    BUFFER = 1
    LO = 2
    HI = 3
    TAG = 4
    ROW = 5
    ROWS = 6
    COL = 7
    COLS = 8
    AXIS = 9
    DIVISIBLE = 10
