"""Packages of the weights in the box, written once."""

import pytest

from ihc2he.export.packages import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return the folders of both kinds of packages: for QuPath, and for the Model Zoo."""
    return export("builtin", tmp_path_factory.mktemp("packages"), ["qupath", "bioimageio"])


@pytest.fixture(scope="session")
def qupath(exported):
    """Return the folder for QuPath's InstanSeg extension."""
    return exported[0]
