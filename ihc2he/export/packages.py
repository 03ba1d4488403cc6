"""From a bundle to packages that other programs open: QuPath, the BioImage Model Zoo, ONNX and PyTorch.

Shape suffixes: b = batch, c = colour, h, w = height, width.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ihc2he.build import build
from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.export import networks
from ihc2he.export.description import (
    PERCENTILES,
    About,
    image_input,
    image_output,
    nuclei_outputs,
    onnx,
    torchscript,
    write_package,
)
from ihc2he.export.instances import CentresToLabels
from ihc2he.export.nuclei import NucleiOfImage
from ihc2he.models.bundle import bundle_folder, load_bundle
from ihc2he.models.segmentation.networks import MapNetwork
from ihc2he.nuclei.decoders.base import Decoder
from ihc2he.nuclei.decoders.centres import CentresDecoder

log = logging.getLogger(__name__)

FORMATS = ("qupath", "bioimageio", "onnx", "torch")
SAMPLE_PX = 256
# What stretching by percentiles moved to 0 and 1, in images as scanners give them.
DARKEST, BRIGHTEST = 0.1, 1.0
_PACKAGES = {
    "qupath": ("bioimageio.spec",),
    "bioimageio": ("bioimageio.spec", "onnx", "onnxruntime"),
    "onnx": ("onnx", "onnxruntime"),
    "torch": (),
}


class Model(NamedTuple):
    """A trained network with what a package says of it.

    Attributes:
        module: images in [0, 1] to joined maps, or to translated images in [0, 1].
        step: px, of which the sides of images must be multiples.
        mpp: um/px.
        channels: names of what it gives.
        classes: names of the types of nuclei from 1.
        decoder: of the maps; None for a translator.
        node: that builds the decoder.
        about: what the package says.
    """

    module: nn.Module
    step: int
    mpp: float
    channels: list[str]
    classes: list[str]
    decoder: Decoder | None
    node: dict[str, Any] | None
    about: About

    @property
    def note(self) -> dict[str, Any]:
        """What this package needs to know to use the network again."""
        known = {"mpp": self.mpp, "step": self.step, "classes": self.classes}
        return known if self.node is None else known | {"decoder": self.node}


def export(
    bundle: str | Path,
    out: str | Path,
    formats: Sequence[str] | None = None,
    author: str = "not stated",
    licence: str | None = None,
) -> list[Path]:
    """Write packages of a bundle; return their paths.

    `qupath` is a folder for QuPath's InstanSeg extension, which is also a package of the BioImage Model Zoo, with the
    division into nuclei inside. `bioimageio` is such a package of the network alone, as ONNX and TorchScript. `onnx`
    and `torch` are one file each.

    Args:
        bundle: a folder, a hub id, or `builtin`.
        out: folder for the packages.
        formats: of `FORMATS`; None: all that the bundle allows.
        author: who made the weights.
        licence: SPDX identifier of their licence.

    Raises:
        ConfigError: for an unknown format, one that the bundle does not allow, or a missing package.
        DataError: if the bundle cannot be read, or an exported network does not give what it should.
    """
    model = load(bundle, author, licence)
    allowed = [name for name in FORMATS if name != "qupath" or isinstance(model.decoder, CentresDecoder)]
    for name in formats or ():
        if name not in FORMATS:
            msg = f"formats: there is no '{name}', expected some of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
            raise ConfigError(msg)
        if name not in allowed:
            kind = "a translator" if model.decoder is None else f"maps of {type(model.decoder).__name__}"
            msg = (
                f"formats=qupath: QuPath opens segmenters of learned centres, {bundle} has {kind}. Use another format."
            )
            raise ConfigError(msg)
    chosen = list(formats or allowed)
    _require([package for name in chosen for package in _PACKAGES[name]])
    out = Path(out)
    scripted = networks.traced(model.module, model.step) if {"qupath", "bioimageio"} & set(chosen) else None
    paths = []
    for name in chosen:
        if name == "onnx":
            paths.append(out / f"{model.about.name}.onnx")
            networks.write_onnx(paths[-1], model.module, model.step, model.note)
        elif name == "torch":
            paths.append(out / f"{model.about.name}.pt2")
            networks.write_exported(paths[-1], model.module, model.step)
        else:
            paths.append(out / name)
            assert scripted is not None
            (_write_qupath if name == "qupath" else _write_bioimageio)(paths[-1], model, scripted)
        log.info("Written: %s", paths[-1])
    return paths


def load(bundle: str | Path, author: str, licence: str | None) -> Model:
    """Return the network of a bundle, ready to be exported.

    Raises:
        DataError: if it cannot be read, or does not say its pixel size.
        ConfigError: if it is neither a segmenter nor a translator, or its maps are smaller than its images.
    """
    network, info = load_bundle(bundle)
    folder = bundle_folder(bundle)
    if info.get("mpp") is None:
        msg = f"{bundle}: config.json has no mpp, um/px of its training images. Pass the bundle of its run."
        raise DataError(msg)
    name = "ihc2he-nuclei" if str(bundle) == "builtin" else f"ihc2he-{Path(bundle).name.partition('@')[0]}"
    card = folder / "README.md"
    readme = card.read_text(encoding="utf-8") if card.is_file() else f"# {name}\n"
    if str(bundle) == "builtin":
        author, licence = "the developers of ihc2he", "MIT"
    classes = list(info.get("classes") or ())
    if isinstance(network, MapNetwork):
        if network.margin:
            msg = (
                f"{bundle}: its maps are {network.margin} px smaller than the image on each side; that is not exported."
            )
            raise ConfigError(msg)
        decoder = build(info["decoder"], Decoder)  # type: ignore[type-abstract]
        module: nn.Module = networks.Maps(network, decoder)
        step = networks.step_of(network)
        with torch.no_grad():
            count = module(networks.example(step)).shape[1]
        about = About(name, "Finds nuclei on histology slides (IHC and H&E).", author, licence, readme)
        channels = [f"map{i}" for i in range(count)]
        return Model(module.eval(), step, float(info["mpp"]), channels, classes, decoder, info["decoder"], about)
    if info.get("role") != "translator":
        msg = f"{bundle}: expected the bundle of a segmenter or a translator, found '{info.get('role')}'."
        raise ConfigError(msg)
    text = f"Translates {info.get('stain_in')} to {info.get('stain_out')}."
    about = About(name, text, author, licence, readme)
    module = networks.Translation(network).eval()
    colours = ["red", "green", "blue"]
    return Model(module, networks.step_of(network), float(info["mpp"]), colours, [], None, None, about)


def _require(packages: Sequence[str]) -> None:
    missing = sorted({name for name in packages if importlib.util.find_spec(name.split(".")[0]) is None})
    if missing:
        msg = f'Exporting needs {", ".join(missing)}: pip install "ihc2he[export]".'
        raise ConfigError(msg)


def _write_qupath(folder: Path, model: Model, scripted: torch.jit.ScriptModule) -> None:
    """Write a package that QuPath's InstanSeg extension opens; it stretches colours by percentiles itself."""
    assert isinstance(model.decoder, CentresDecoder)
    labels = CentresToLabels(model.decoder, model.mpp)
    module = NucleiOfImage(scripted, labels, model.step, bool(model.classes), DARKEST, BRIGHTEST).eval()
    outputs = nuclei_outputs(model.classes, model.mpp, "raw")
    sample = sample_tile(model.mpp)
    with tempfile.TemporaryDirectory() as made, networks.quiet(), torch.no_grad():
        files = Path(made)
        whole = torch.jit.script(module)
        torch.jit.save(whole, files / "instanseg.pt")
        found = whole(stretched(sample))
        given = image_input("raw", model.mpp, 1, model.step, {"id": "scale_range", "kwargs": PERCENTILES})
        tensors = {"test_input.npy": batch(sample)}
        tensors |= {node["test_tensor"]["source"]: each.numpy() for node, each in zip(outputs, found, strict=True)}
        write_package(folder, model.about, given, outputs, torchscript("instanseg.pt"), files, tensors)


def _write_bioimageio(folder: Path, model: Model, scripted: torch.jit.ScriptModule) -> None:
    """Write a package of the network alone."""
    sample = sample_tile(model.mpp)
    gain = {"gain": 1 / 255, "offset": 0.0}
    least = -(-networks.LEAST // model.step) * model.step
    given = image_input("image", model.mpp, model.step, least, {"id": "scale_linear", "kwargs": gain})
    outputs = [image_output("result", model.channels, model.mpp, "image")]
    with tempfile.TemporaryDirectory() as made, networks.quiet(), torch.no_grad():
        files = Path(made)
        networks.write_onnx(files / "network.onnx", model.module, model.step, model.note)
        torch.jit.save(scripted, files / "network.pt")
        result = model.module(torch.from_numpy(batch(sample)) / 255)
        tensors = {"test_input.npy": batch(sample), "test_result.npy": result.numpy()}
        weights = onnx("network.onnx", networks.OPSET) | torchscript("network.pt")
        write_package(folder, model.about, given, outputs, weights, files, tensors, model.note)


def sample_tile(mpp: float) -> NDArray[np.uint8]:
    """Return a tile of simulated IHC, HxWx3."""
    from ihc2he.simulate.endonuke import MARKER
    from ihc2he.simulate.scene import cut, draw_block
    from ihc2he.simulate.tile import draw_case, photograph_ihc, tile_rng
    from ihc2he.simulate.tissue import ENDOMETRIUM

    rng = tile_rng(0, 0)
    case = draw_case(ENDOMETRIUM, MARKER, 0, 0)
    return photograph_ihc(cut(draw_block(case.tissue, SAMPLE_PX, mpp, rng), rng), case, rng)


def batch(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return an image as (1, 3, H, W) in [0, 255]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def stretched(image: NDArray[np.uint8]) -> torch.Tensor:
    """Return an image as QuPath hands it to a package, (1, 3, H, W): stretched by its percentiles and cut off.

    >>> image = np.array([[[0, 0, 0], [255, 100, 200]]], np.uint8)
    >>> (100 * stretched(image)).round().int().flatten().tolist()
    [0, 100, 0, 100, 0, 100]
    """
    values = batch(image)
    low, high = (
        np.percentile(values, PERCENTILES[key], (2, 3), keepdims=True) for key in ("min_percentile", "max_percentile")
    )
    scaled = (values - low) / (high - low + PERCENTILES["eps"])
    return torch.from_numpy(np.clip(scaled, -0.5, 1.5).astype(np.float32))


def facts(paths: Sequence[Path]) -> str:
    """Return what was written, a line each, with sizes."""

    def size(path: Path) -> int:
        return sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size

    return "\n".join(f"{path}: {size(path) / 1e6:.1f} MB" for path in paths)
