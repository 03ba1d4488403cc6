"""The stains: their names, optical density and colour deconvolution."""

from typing import Literal

Stain = Literal["ihc", "he"]
STAINS: dict[Stain, str] = {"ihc": "IHC", "he": "H&E"}  # as they are written in bundles and pictures
