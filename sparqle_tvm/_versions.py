"""The version of this package, the pair of TVM releases that it works with, and their check.

The check reads the metadata of the installed distributions and imports nothing: a wrong tvm-ffi
ends in a segmentation fault, which no message can follow.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from sparqle_tvm.errors import VersionError

VERSION = "0.1.0"

REQUIRED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


def check_versions() -> None:
    """Refuse to go on with another TVM or tvm-ffi than the pair in `REQUIRED`.

    Raises
    ------
    VersionError
        If one of them is missing or of another version; says what was found and how to mend it.
    """
    wrong = []
    for name, wanted in REQUIRED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed, need {wanted}")
        else:
            if found != wanted:
                wrong.append(f"found {name} {found}, need {wanted}")
    if wrong:
        pins = " ".join(f"{name}=={wanted}" for name, wanted in REQUIRED.items())
        raise VersionError(f"{'; '.join(wrong)}. To mend it: python -m pip install {pins}")
