"""What the verifier's tables and results mean, shared by its Python and its compiled part."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a step does."""

    WAIT = 0
    SIGNAL = 1
    LOAD = 2
    MMA = 3
    DRAIN = 4
    STORE = 5


class Mode(IntEnum):
    """How a step touches a tile: reads it, makes it, or changes it in place."""

    READ = 0
    WRITE = 1
    UPDATE = 2


class Tag(IntEnum):
    """What lies in a tile. Rows of those before MSB may be read alone."""

    DEAD = -1
    LSB = 0
    PBM = 1
    DNS = 2
    SUM = 3
    WGT = 4
    ROW = 5
    MSB = 6
    GRP = 7
    CHN = 8
    ACC = 9
    # Row parameters in two parts: scales, then row numbers.
    ORDERED = 10


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
    """Columns of the table of touches: bytes [LO, HI) of a buffer, as a tile of a tensor."""

    MODE = 0
    BUFFER = 1
    LO = 2
    HI = 3
    TAG = 4
    ROW = 5
    ROWS = 6
    COL = 7
    COLS = 8
