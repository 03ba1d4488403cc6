"""Optical density and colour deconvolution."""
