"""The plugin as TVM loads it, in fresh processes: import orders, idempotence, wrong versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparqle_tvm import _versions
from sparqle_tvm.errors import VersionError

IS_REGISTERED = """
import tvm
target = tvm.target.Target("sparqle/edge")
assert target.kind.name == "llvm" and "sparqle" in list(target.keys)
tvm.ir.Op.get("relax.sparqle.encode")
from tvm.script import relax as R
assert callable(R.sparqle.split_dense)
from tvm import relax
assert isinstance(relax.get_pipeline("sparqle", target="sparqle/edge"), tvm.transform.Pass)
"""


def run_python(code: str, *, warnings: str = "error", path: Path | None = None) -> str:
    """Run in a fresh process and return its output; a failure shows what it wrote."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import tvm",
        "import sparqle_tvm",
        "from sparqle_tvm import pipeline",
        "import sparqle_tvm.passes",
        "import sparqle_tvm.compiler",
        "import sparqle_tvm.api",
        "import sparqle_tvm.dialect",
        "import sparqle_tvm.host.legalize",
        "import sparqle_tvm.target.accelerator",
    ],
)
def test_registered_in_every_import_order(first):
    run_python(f"{first}\n{IS_REGISTERED}")


def test_register_is_idempotent():
    run_python(
        f"{IS_REGISTERED}\n"
        "from sparqle_tvm._plugin import register\n"
        "before = len(tvm.target.list_tags())\n"
        "register(); register()\n"
        f"assert len(tvm.target.list_tags()) == before\n{IS_REGISTERED}"
    )


def install_fake_metadata(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version"), [("apache-tvm-ffi", "0.1.15.post1"), ("apache-tvm", "0.26.0")]
)
def test_wrong_version_is_a_clear_error_on_use(tmp_path, name, version):
    install_fake_metadata(tmp_path, name, version)
    code = """
import sparqle_tvm
from sparqle_tvm.errors import VersionError
assert sparqle_tvm.numerics.bounds(4) == (-128, 127)
for public in ("pipeline", "compile", "load", "host_pipeline", "passes", "frontend"):
    try:
        getattr(sparqle_tvm, public)
    except VersionError as error:
        message = str(error)
    else:
        raise AssertionError(public)
print(message)
import tvm
"""
    output = run_python(code, warnings="default", path=tmp_path)
    message = f"found {name} {version}, need {_versions.REQUIRED[name]}"
    mend = "python -m pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1"
    # Once by our error, once as the warning that TVM makes of it.
    assert output.count(message) == 2
    assert output.count(mend) == 2
    assert "Failed to autoload tvm backend 'sparqle'" in output


def test_missing_distribution(monkeypatch):
    _versions.check_versions()
    monkeypatch.setitem(_versions.REQUIRED, "no-such-distribution-anywhere", "1.0")
    with pytest.raises(VersionError, match="no-such-distribution-anywhere is not installed"):
        _versions.check_versions()
