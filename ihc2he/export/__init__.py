"""Packages of trained networks that other programs open, see `ihc2he.export.packages`."""
