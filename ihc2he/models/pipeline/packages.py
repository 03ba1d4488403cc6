"""Packages of other programs: what `rdf.yaml` says of a network, and its weights, ready to run.

Of the BioImage Model Zoo's format 0.5, which QuPath's InstanSeg extension uses too. Files are read where they are, from
a folder or a zip file, and nothing is unpacked.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from ihc2he.errors import ConfigError, DataError
from ihc2he.models.pipeline.processing import STATISTICS, check_steps

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
_MOST = 2**31  # bytes of a file in a package; a zip file may hold some that are small only while they are packed
_MOST_SAID = 2**22  # likewise of the description
_UM = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}
Run = Callable[[Tensor], list[Tensor]]


class Side(NamedTuple):
    """Which lengths a network accepts for the height and width of an image, px: `least` + n * `step`, or only `least`.

    >>> Side(64, 32).next(70), Side(256, 0).next(70)
    (96, 256)
    """

    least: int
    step: int

    def next(self, length: int) -> int:
        """Return the smallest accepted length that is not below this one; of fixed ones, the only one."""
        return self.least if not self.step else self.least + max(0, -(-(length - self.least) // self.step)) * self.step


@dataclass(frozen=True)
class Package:
    """A network of a package.

    Attributes:
        source: where it is.
        run: from images with their channels first, (1, 3, H, W), after preprocessing, to its outputs.
        mpp: um/px.
        side: accepted heights and widths.
        preprocessing: steps from 8-bit values to what the network reads.
        outputs: descriptions of its outputs.
        own: what `python -m ihc2he.export` has noted: decoder and classes; empty in packages of others.
        digest: SHA-256 of the weights.
        description: SHA-256 of `rdf.yaml`.
    """

    source: str
    run: Run
    mpp: float
    side: Side
    preprocessing: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    own: Mapping[str, Any]
    digest: str
    description: str


class _Files:
    """The files of a package, by name."""

    def __init__(self, source: str) -> None:
        self.source, self.path = source, Path(source).expanduser()
        if not (self.path.is_dir() or zipfile.is_zipfile(self.path)):
            found = "found another file" if self.path.exists() else "but there is nothing"
            msg = f"{source}: expected a folder or a zip file with {DESCRIPTIONS[0]}, {found}."
            raise DataError(msg)
        self.top = ""
        self.description = self._description()

    def _description(self) -> str:
        """Return the name of the file that describes the package; in a zip file it may lie in a folder."""
        if self.path.is_dir():
            names = [file.name for file in self.path.iterdir()]
        else:
            with zipfile.ZipFile(self.path) as archive:
                names = archive.namelist()
            tops = {name.partition("/")[0] for name in names}
            if len(tops) == 1 and all("/" in name for name in names):
                self.top = f"{tops.pop()}/"
                names = [name.removeprefix(self.top) for name in names]
        name = next((name for name in DESCRIPTIONS if name in names), None)
        if name is None:
            msg = f"{self.source}: has no {DESCRIPTIONS[0]}, which says what the network needs."
            raise DataError(msg)
        return name

    def read(self, name: Any, most: int = _MOST) -> bytes:
        """Return the content of a file.

        Args:
            name: in the package.
            most: bytes that it may have in a zip file.

        Raises:
            DataError: if it is not in the package, or too large.
        """
        if not isinstance(name, str) or "://" in name:
            msg = f"{self.source}: its file {name!r} is not in the package. Download the whole package."
            raise DataError(msg)
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts:
            msg = f"{self.source}: its file '{name}' lies outside of the package, which no good package says."
            raise DataError(msg)
        try:
            if self.path.is_dir():
                file = self.path.joinpath(*parts)
                if self.path.resolve() not in file.resolve().parents:
                    msg = f"{self.source}: its file '{name}' is a link to outside of the package."
                    raise DataError(msg)
                return file.read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                if archive.getinfo(self.top + name).file_size > most:
                    msg = f"{self.source}: its file '{name}' has more than {most / 2**20:g} MiB."
                    raise DataError(msg)
                return archive.read(self.top + name)
        except (OSError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            msg = f"{self.source}: its file '{name}' cannot be read ({type(error).__name__}: {error})."
            raise DataError(msg) from error


def read_package(source: str, trust: bool, key: str) -> Package:
    """Return the network of a package. Nothing of the package is executed unless it is trusted.

    ONNX comes first, which only computes. TorchScript is a program.

    Args:
        source: a folder or a zip file.
        trust: whether TorchScript may be run.
        key: where the configuration has it, for messages.

    Raises:
        ConfigError: for weights that are not trusted or cannot be run, or an input that is no RGB image.
        DataError: if it cannot be read, or does not hold what it says.
    """
    files = _Files(source)
    try:
        text = files.read(files.description, _MOST_SAID)
        return _package(files, yaml.safe_load(text), sha256(text).hexdigest(), trust, key)
    except (RecursionError, yaml.YAMLError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}"
        msg = f"{source}: {files.description} does not describe a model in format 0.5 ({cause})."
        raise DataError(msg) from error


def _package(files: _Files, said: Mapping[str, Any], description: str, trust: bool, key: str) -> Package:
    source = files.source
    if said["type"] != "model" or not str(said["format_version"]).startswith("0.5"):
        msg = f"{source}: is a {said['type']} of format {said['format_version']}, expected a model of format 0.5."
        raise DataError(msg)
    if len(said["inputs"]) != 1:
        msg = f"{source}: has {len(said['inputs'])} inputs; only packages with one, an RGB image, can be used."
        raise ConfigError(msg)
    (given,) = said["inputs"]
    order, mpp, side = _image(source, given["axes"])
    steps = given.get("preprocessing") or []
    check_steps(source, steps)
    for output in said["outputs"]:
        check_steps(source, output.get("postprocessing") or [])
    if seen := [step["id"] for step in said["outputs"][0].get("postprocessing") or [] if step["id"] in STATISTICS]:
        msg = f"{source}: has a step '{seen[0]}' after the network, which would differ from window to window."
        raise ConfigError(msg)
    run, digest = _weights(files, said["weights"], trust, key)

    def ordered(x_bchw: Tensor) -> list[Tensor]:
        return run(x_bchw.permute(*order).contiguous())

    config = said.get("config") or {}
    own = config.get("ihc2he") or {}
    return Package(source, ordered, mpp, side, steps, said["outputs"], own, digest, description)


def _image(source: str, axes: Sequence[Mapping[str, Any]]) -> tuple[list[int], float, Side]:
    """Return the order of (batch, channel, y, x) that an input has, its um/px, and its sides."""
    names = [axis["type"] if axis["type"] == "batch" else axis.get("id", axis["type"]) for axis in axes]
    wanted = ["batch", "channel", "y", "x"]
    if sorted(names) != sorted(wanted):
        msg = f"{source}: its input has the axes {', '.join(names)}; expected an image: {', '.join(wanted)}."
        raise ConfigError(msg)
    known = dict(zip(names, axes, strict=True))
    channels = known["channel"].get("channel_names", [0] * 3)
    if len(channels) != 3:
        msg = f"{source}: its input has {len(channels)} channels; only packages for RGB images can be used."
        raise ConfigError(msg)
    sizes = {(axis["scale"], axis.get("unit")) for axis in (known["y"], known["x"]) if axis.get("unit") in _UM}
    if len(sizes) != 1:
        msg = (
            f"{source}: does not say the pixel size of its images; expected the same scale for x and y, with unit "
            "micrometer, in rdf.yaml."
        )
        raise DataError(msg)
    ((scale, unit),) = sizes
    sides = {_side(size) for name in "yx" if "tensor_id" not in (size := _size(known[name]))}  # that is: as the other
    if len(sides) != 1:
        msg = f"{source}: its input has other lengths for y than for x, which is not supported."
        raise ConfigError(msg)
    return [wanted.index(name) for name in names], float(scale) * _UM[unit], sides.pop()


def _size(axis: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the lengths of an axis as `min` and `step`; a fixed one has the step 0."""
    size = axis["size"]
    return {"min": size, "step": 0} if isinstance(size, int) else size


def _side(size: Mapping[str, int]) -> Side:
    return Side(int(size["min"]), int(size["step"]))


def _weights(files: _Files, weights: Mapping[str, Any], trust: bool, key: str) -> tuple[Run, str]:
    """Return what runs a network, and the SHA-256 of its file."""
    known = {name: node for name, node in weights.items() if node}
    if "onnx" in known:
        content = _checked(files, known["onnx"])
        session = OnnxSession(content, f"{files.source}: {known['onnx']['source']}")
        return session.run, session.digest
    if "torchscript" not in known:
        msg = f"{files.source}: has weights as {', '.join(known)}; expected onnx or torchscript."
        raise ConfigError(msg)
    if not trust:
        msg = (
            f"{files.source}: its weights are TorchScript, a program that this package would run with your rights, on "
            f"your files. If you trust who made it, pass {key}.trust=true. Weights as ONNX need no trust."
        )
        raise ConfigError(msg)
    content = _checked(files, known["torchscript"])
    try:
        module = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as error:
        msg = f"{files.source}: {known['torchscript']['source']} is not TorchScript ({str(error).splitlines()[0]})."
        raise DataError(msg) from error
    return _Script(module), sha256(content).hexdigest()


def _checked(files: _Files, node: Mapping[str, Any]) -> bytes:
    content = files.read(node["source"])
    if node.get("sha256") not in (None, sha256(content).hexdigest()):
        msg = f"{files.source}: {node['source']} is not the file that the package was made with, by its sha256."
        raise DataError(msg)
    return content


class _Script:
    """Runs TorchScript on the device of its input."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    def __call__(self, x_bchw: Tensor) -> list[Tensor]:
        with torch.autocast(x_bchw.device.type, enabled=False):
            found = self.module.to(x_bchw.device)(x_bchw)
        return [found] if isinstance(found, Tensor) else list(found)


def providers(device: torch.device, available: Sequence[str]) -> list[Any]:
    """Return what onnxruntime should run a network with, best first, for images on a device.

    Args:
        device: of the images.
        available: what this onnxruntime has; that for GPUs comes with the package onnxruntime-gpu.

    >>> providers(torch.device("cuda", 1), ["CUDAExecutionProvider", "CPUExecutionProvider"])
    [('CUDAExecutionProvider', {'device_id': 1}), 'CPUExecutionProvider']
    """
    cpu = ["CPUExecutionProvider"]
    if device.type != "cuda" or "CUDAExecutionProvider" not in available:
        return cpu
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), *cpu]


class OnnxSession:
    """An ONNX network with one input, which runs on the device of its images; data beside its file is not read.

    Args:
        content: of the file.
        source: its name, for messages.

    Attributes:
        metadata: texts that its file holds.
        digest: SHA-256 of the file.
    """

    def __init__(self, content: bytes, source: str) -> None:
        self._content, self._source = content, source
        self.place(torch.device("cpu"))
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            said = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            msg = f"{source}: has the inputs {said}; expected one, of images (N, 3, H, W) as float32."
            raise ConfigError(msg)
        self._input = inputs[0].name
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.digest = sha256(content).hexdigest()

    def place(self, device: torch.device) -> None:
        """Open the network for images on a device.

        Raises:
            ConfigError: without onnxruntime.
            DataError: if it cannot read the network.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            msg = f'{self._source}: ONNX needs onnxruntime: pip install "ihc2he[export]".'
            raise ConfigError(msg) from error
        chosen = providers(device, ort.get_available_providers())
        try:
            self._session, self._device = ort.InferenceSession(self._content, providers=chosen), device
        except Exception as error:  # onnxruntime has an exception of its own for each kind of fault, all private
            msg = f"{self._source}: onnxruntime cannot read it ({' '.join(str(error).split())[:200]})."
            raise DataError(msg) from error

    def run(self, x_bchw: Tensor) -> list[Tensor]:
        """Return the outputs for images, on their device, which is that of their process.

        Raises:
            DataError: if the network cannot take them.
        """
        if x_bchw.device != self._device:
            self.place(x_bchw.device)
        try:
            found = self._session.run(None, {self._input: x_bchw.float().cpu().numpy()})
        except Exception as error:
            msg = f"The ONNX network cannot take images of {tuple(x_bchw.shape)}: {' '.join(str(error).split())[:200]}"
            raise DataError(msg) from error
        return [torch.from_numpy(np.asarray(each)).to(x_bchw.device) for each in found]
