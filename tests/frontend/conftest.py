"""The tiny models that tests of the frontends read lie beside the tests of the models."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
