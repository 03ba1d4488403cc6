"""Translate IHC tiles to H&E, find the nuclei on the translation, and measure whether that helps."""

__version__ = "0.2.0"
