"""Makes the package `fuzzing`, which `run.py` uses too, importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
