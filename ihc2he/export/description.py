"""Packages of the BioImage Model Zoo (bioimage.io, format 0.5): a folder with `rdf.yaml`, weights and sample tensors.

QuPath's InstanSeg extension opens such a folder too, if its weights are called `instanseg.pt` and it has the outputs
that `nuclei_outputs` describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import DataError
from ihc2he.files import complete_folder

Node = dict[str, Any]
PERCENTILES: Node = {"min_percentile": 0.1, "max_percentile": 99.9, "eps": 1e-6, "axes": ["x", "y"]}


@dataclass(frozen=True)
class About:
    """What a package says of itself.

    Attributes:
        name: of the model.
        description: a sentence or two.
        author: who made it.
        licence: SPDX identifier of the weights' licence; None if it is not stated.
        readme: text of the model card, Markdown.
    """

    name: str
    description: str
    author: str
    licence: str | None
    readme: str


def image_input(name: str, mpp: float, step: int, least: int, preprocessing: Node) -> Node:
    """Return the description of an RGB input of any size.

    Args:
        name: of the tensor.
        mpp: um/px.
        step: px, of which the sides are multiples.
        least: px, the smallest sides.
        preprocessing: what makes the network's values from those of the sample.
    """
    size = {"min": least, "step": step}
    return {
        "id": name,
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "id": "channel", "channel_names": ["red", "green", "blue"]},
            *({"type": "space", "id": axis, "size": size, "scale": mpp, "unit": "micrometer"} for axis in "yx"),
        ],
        "data": {"type": "float32", "range": [0, 255]},
        "preprocessing": [preprocessing],
        "test_tensor": {"source": "test_input.npy"},
    }


def image_output(name: str, channels: Sequence[str], mpp: float, of: str) -> Node:
    """Return the description of an output of the input's size.

    Args:
        name: of the tensor.
        channels: their names.
        mpp: um/px.
        of: name of the input.
    """
    sides = [
        {
            "type": "space", "id": axis, "size": {"tensor_id": of, "axis_id": axis}, "scale": mpp, "unit": "micrometer",
        }
        for axis in "yx"
    ]  # fmt: skip
    return {
        "id": name,
        "axes": [
            {"type": "batch", "size": 1},
            {"type": "channel", "id": "channel", "channel_names": list(channels)},
            *sides,
        ],
        "test_tensor": {"source": f"test_{name}.npy"},
    }


def nuclei_outputs(classes: Sequence[str], mpp: float, of: str) -> list[Node]:
    """Return the outputs as QuPath's InstanSeg extension knows them: labels, and with classes a row per nucleus."""
    labels = image_output("instance_segmentation", ["nuclei"], mpp, of)
    if not classes:
        return [labels]
    rows = {
        "id": "detection_classes",
        "axes": [
            {"type": "index", "id": "n_objects", "size": {"min": 2, "max": None}},
            {"type": "index", "id": "n_columns", "size": 1},
        ],
        "data": {"type": "uint8", "values": ["unknown", *classes]},
        "test_tensor": {"source": "test_detection_classes.npy"},
    }
    return [labels, rows]


def torchscript(source: str) -> Node:
    """Return the description of weights as TorchScript."""
    return {"torchscript": {"source": source, "pytorch_version": version("torch").split("+")[0]}}


def onnx(source: str, opset: int) -> Node:
    """Return the description of weights as ONNX."""
    return {"onnx": {"source": source, "opset_version": opset}}


def write_package(
    folder: Path,
    about: About,
    given: Node,
    outputs: Sequence[Node],
    weights: Node,
    files: Path,
    tensors: Mapping[str, NDArray],
    note: Node | None = None,
) -> None:
    """Write a package as a folder, completely or not at all, after bioimageio.spec has checked it.

    Args:
        folder: where to; an older package there is replaced.
        about: what it says of itself.
        given: description of the input.
        outputs: of the outputs.
        weights: of the weights.
        files: folder with the files of the weights.
        tensors: sample input and outputs by the names of their files.
        note: for whoever reads it with this package.

    Raises:
        DataError: with what bioimageio.spec found.
    """
    from bioimageio.spec import ValidationContext, save_bioimageio_package_as_folder
    from bioimageio.spec.model.v0_5 import ModelDescr
    from pydantic import ValidationError

    content = {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": about.name,
        "description": about.description,
        "authors": [{"name": about.author}],
        "documentation": {"source": "README.md"},
        "tags": ["histopathology", "brightfield", "nuclei", "ihc2he"],
        "inputs": [given],
        "outputs": list(outputs),
        "weights": weights,
    }
    if note:
        content["config"] = {"ihc2he": note}
    if about.licence:
        content["license"] = about.licence
    for name, tensor in tensors.items():
        np.save(files / name, tensor)
    (files / "README.md").write_text(about.readme, encoding="utf-8")
    try:
        with ValidationContext(root=files, perform_io_checks=True), complete_folder(folder) as temporary:
            described = ModelDescr.model_validate(content)
            save_bioimageio_package_as_folder(described, output_path=temporary)
    except (ValidationError, ValueError) as error:
        msg = f"{folder}: bioimageio.spec refuses the package: {error}"
        raise DataError(msg) from error
