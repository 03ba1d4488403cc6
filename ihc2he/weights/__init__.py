"""The weights that ship with the package: one bundle of a segmenter, see docs/model_zoo.md."""

from pathlib import Path

BUILTIN = Path(__file__).parent / "nuclei"
