"""Segmenters that come from outside: packages and ONNX networks, and nuclei that another program has found.

Shape suffixes: b = batch, c = colour, k = maps, h, w = height, width; n = nuclei, v = values of a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ihc2he.build import build, refuse_foreign
from ihc2he.datainfo import check_class_names
from ihc2he.errors import ConfigError, DataError
from ihc2he.models.pipeline.finding import find_labelled
from ihc2he.models.pipeline.packages import OnnxSession, Run, Side, read_package
from ihc2he.models.pipeline.processing import STATISTICS, processed
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.segmentation.loading import changed_decoder
from ihc2he.nuclei.colours import name_of
from ihc2he.nuclei.decoders.base import Decoder, Nuclei
from ihc2he.nuclei.geojson import Shapes, drawn, features, shapes_of
from ihc2he.tiling.windows import Block, predict_tiled

_UNKNOWN = name_of(0, ())


class Onnx(Segmenter):
    """A network of maps as ONNX: images in [0, 1], (N, 3, H, W), to the joined maps of a decoder.

    Args:
        weights: the file. `python -m ihc2he.export` notes in it what the other arguments say.
        mpp: um/px; null = as the file says.
        step: px, of which the sides of images must be multiples; null = as the file says, or 32.
        classes: names of the types from 1; null = as the file says, or none.
        decoder: node of the decoder that reads the maps, or settings that replace those in the file; null = as the
            file says.
        window: px, the largest sides that are predicted at once.
        overlap: px, least overlap of windows, in which their maps are blended.
        name: under which the configuration has it, for messages.

    Raises:
        ConfigError: without a file, pixel size or decoder, or for a network with another input.
        DataError: if it cannot be read.
    """

    files = ("weights",)

    def __init__(
        self,
        weights: str | None,
        mpp: float | None = None,
        step: int | None = None,
        classes: Sequence[str] | None = None,
        decoder: Mapping[str, Any] | None = None,
        window: int = 512,
        overlap: int = 64,
        name: str = "onnx",
    ) -> None:
        super().__init__()
        key = f"model.segmenters.{name}"
        path = Path(
            _given(weights, key, "weights", "an ONNX file: python -m ihc2he.export BUNDLE out=FOLDER writes one")
        )
        try:
            self._session = OnnxSession(path.expanduser().read_bytes(), str(path))
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror})."
            raise DataError(msg) from error
        note = _note(self._session.metadata, str(path))
        said = mpp or note.get("mpp")
        if said is None:
            msg = f"{path}: does not say its pixel size. Pass {key}.mpp in um/px."
            raise ConfigError(msg)
        self.mpp, self.classes = float(said), list(note.get("classes") or () if classes is None else classes)
        check_class_names(self.classes, f"{key}.classes")
        decoders = _decoder(str(path), decoder, note.get("decoder"))
        if decoders is None:
            msg = f"{path}: does not say how to read its maps. Pass {key}.decoder={{_target_: DECODER}}."
            raise ConfigError(msg)
        self.decoder, self.node = decoders
        self.find = self.decoder.find
        self.source, self.window, self.overlap = str(path), window, overlap
        step = step or int(note.get("step") or 32)
        self._side = Side(step, step)

    def facts(self) -> dict[str, Any]:
        """Return what results depend on besides arguments."""
        return super().facts() | {"sha256": self._session.digest}

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the joined maps."""
        assert self.decoder is not None
        return _maps(self._session.run, self._side, x_bchw, self, self.decoder, self.window, self.overlap)


class Package(Segmenter):
    """A network in a package of QuPath's InstanSeg extension, or of the BioImage Model Zoo.

    Its first output is a map of labels, with a row of `detection_classes` or `detection_logits` for each where it has
    types; or it is the maps of a decoder. Percentiles are taken of the whole image, after translation.

    Args:
        weights: a folder or a zip file with `rdf.yaml`.
        trust: run TorchScript, which is a program. ONNX is run without.
        decoder: node of the decoder that reads maps, or settings that replace those in the package; null = as the
            package says, and if it says nothing, the first output is labels.
        classes: names of the types of maps; null = as the package says.
        window: px, the largest sides that maps are predicted at once.
        overlap: px, least overlap of windows, in which maps are blended.
        name: under which the configuration has it, for messages.

    Raises:
        ConfigError: without a package, for TorchScript that is not trusted, or something that cannot be used.
        DataError: if it cannot be read.
    """

    files = ("weights",)

    def __init__(
        self,
        weights: str | None,
        trust: bool = False,
        decoder: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        window: int = 512,
        overlap: int = 64,
        name: str = "package",
    ) -> None:
        super().__init__()
        key = f"model.segmenters.{name}"
        weights = _given(weights, key, "weights", "a folder or zip file with rdf.yaml, of QuPath or the Model Zoo")
        self.package = read_package(weights, trust, key)
        self.source, self.mpp = weights, self.package.mpp
        self.window, self.overlap = window, overlap
        self._names = [str(output.get("id")) for output in self.package.outputs]
        self._order = _order(weights, self.package.outputs[0])
        own = self.package.own if self._names[0] == "result" else {}  # labels need no decoder
        if decoders := _decoder(weights, decoder, own.get("decoder")):
            self.decoder, self.node = decoders
            self.find = self.decoder.find
            self.classes = list(own.get("classes") or () if classes is None else classes)
        else:
            self.averaged, self.find = False, find_labelled
            self._check_labels(key)
            self._rows, self._values = _rows(self.package.outputs)
            self.classes = [value for value in dict.fromkeys(self._values) if value != _UNKNOWN]
        check_class_names(self.classes, f"{weights}: classes")

    def _check_labels(self, key: str) -> None:
        axes = self.package.outputs[0]["axes"]
        names = next((axis.get("channel_names") or [] for axis in axes if axis["type"] == "channel"), [])
        if len(names) > 2:
            msg = (
                f"{self.source}: its output '{self._names[0]}' has {len(names)} channels ({', '.join(names[:6])}), so "
                f"it is no map of labels. Name the decoder that reads it: {key}.decoder={{_target_: DECODER}}."
            )
            raise ConfigError(msg)
        if not self.package.side.step:
            msg = f"{self.source}: gives labels of images of {self.package.side.least} px only, which is not supported."
            raise ConfigError(msg)

    def facts(self) -> dict[str, Any]:
        """Return what results depend on besides arguments."""
        return super().facts() | {"sha256": self.package.digest, "rdf": self.package.description}

    def prepare(self, name: str, colours: Callable[[], Tensor] | None) -> Tensor | None:
        """Return pixels that stand for the colours of an image of several blocks, if the package asks for them."""
        asked = any(step["id"] in STATISTICS for step in self.package.preprocessing)
        return colours() if asked and colours is not None else None

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the joined maps; or the labels, and with classes the type of each."""
        states = states or [None] * len(x_bchw)
        return torch.cat([self._one(x_bchw[i : i + 1], state) for i, state in enumerate(states)])

    def _one(self, x_1chw: Tensor, whole: Tensor | None) -> Tensor:
        whole = None if whole is None else 255 * whole.to(x_1chw.device)
        x_1chw = processed(self.package.preprocessing, 255 * x_1chw.float(), whole)
        if self.decoder is not None:
            side = self.package.side
            window = self.window if side.step else side.least
            return _maps(self._outputs, side, x_1chw, self, self.decoder, window, min(self.overlap, window // 2))
        outputs = _fitted(self._outputs, self.package.side, x_1chw)
        size = tuple(self.package.side.next(side) for side in x_1chw.shape[2:])
        if outputs[0].shape[2:] != size:
            msg = (
                f"{self.source}: gave labels of {tuple(outputs[0].shape[2:])} px for {size}; only labels of the same "
                "size as the image can be used."
            )
            raise DataError(msg)
        labels_hw = outputs[0][0, 0, : x_1chw.shape[2], : x_1chw.shape[3]]
        if not (labels_hw >= 0).all() or not (labels_hw == labels_hw.round()).all():
            msg = f"{self.source}: its output '{self._names[0]}' has values that are no labels, such as probabilities."
            raise DataError(msg)
        return torch.stack([labels_hw.float(), *self._types(labels_hw.long(), outputs)])[None]

    def _outputs(self, x_1chw: Tensor) -> list[Tensor]:
        """Return the outputs after their last steps; images with the channels first."""
        found = self.package.run(x_1chw)
        if len(found) != len(self._names):
            msg = f"{self.source}: gave {len(found)} outputs, and rdf.yaml describes {len(self._names)}."
            raise DataError(msg)
        steps = self.package.outputs[0].get("postprocessing") or []
        first = processed(steps, found[0].float().permute(*self._order))
        return [first, *found[1:]]

    def _types(self, labels_hw: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the type of each pixel's nucleus, as a list of one map, or of none without classes."""
        if self._rows is None:
            return []
        rows_nv = outputs[self._rows]
        chosen_n = rows_nv.argmax(1) if rows_nv.shape[1] > 1 else rows_nv[:, 0].long()
        if labels_hw.max() > len(chosen_n) or not ((chosen_n >= 0) & (chosen_n < len(self._values))).all():
            msg = (
                f"{self.source}: '{self._names[self._rows]}' has {len(chosen_n)} rows for {int(labels_hw.max())} "
                f"nuclei, or a class that is none of its {len(self._values)}."
            )
            raise DataError(msg)
        kinds = [0 if value == _UNKNOWN else 1 + list(self.classes).index(value) for value in self._values]
        types_n = torch.tensor(kinds, device=labels_hw.device)[chosen_n.to(labels_hw.device)]
        return [F.pad(types_n, (1, 0))[labels_hw].float()]


class Detections(Segmenter):
    """Nuclei that another program has found, such as QuPath, StarDist or Cellpose; images are not looked at.

    Args:
        path: a folder with `NAME.geojson` or `NAME.geojson.gz` for each image, in px from the corner of the first
            pixel. Where a file has detections or cells, its annotations are not nuclei.
        classes: names of the classes in the files; null = classes there do not count.
        name: under which the configuration has it, for messages.

    Raises:
        ConfigError: without a folder.
    """

    files = ("path",)
    mpp = None
    averaged = reads_images = False
    find = staticmethod(find_labelled)

    def __init__(self, path: str | None, classes: Sequence[str] | None = None, name: str = "geojson") -> None:
        super().__init__()
        key = f"model.segmenters.{name}"
        self.path = Path(_given(path, key, "path", "a folder with NAME.geojson for each image")).expanduser()
        if not self.path.is_dir():
            msg = f"{key}.path={self.path}: there is no such folder; expected one with NAME.geojson for each image."
            raise ConfigError(msg)
        self.classes = list(classes or ())
        check_class_names(self.classes, f"{key}.classes")

    def facts(self) -> dict[str, Any]:
        """Return what results depend on besides arguments: also the content of all files."""
        digest = blake2b(digest_size=8)
        for file in sorted(file for suffix in ("", ".gz") for file in self.path.rglob(f"*.geojson{suffix}")):
            digest.update(str(file.relative_to(self.path)).encode() + b"\0" + file.read_bytes())
        return super().facts() | {"files": digest.hexdigest()}

    def prepare(self, name: str, colours: Callable[[], Tensor] | None) -> Shapes:
        """Return the nuclei of an image.

        Raises:
            DataError: if it has no file, or one that cannot be read.
        """
        paths = [self.path / f"{name}.geojson{suffix}" for suffix in ("", ".gz")]
        there = [path for path in paths if path.is_file()]
        if len(there) != 1:
            found = (
                "has two files, of which one has to go" if there else "has no file. Without nuclei it has an empty one"
            )
            msg = f"The image {name} {found}: {paths[0]} or {paths[1].name}."
            raise DataError(msg)
        return shapes_of(_nuclei(features(there[0])), self.classes or None)

    def of_block(self, state: Shapes, block: Block) -> Nuclei:
        """Return the nuclei in a block of an image."""
        shape = (block.rows.stop - block.rows.start, block.columns.stop - block.columns.start)
        return drawn(state, shape, (block.columns.start, block.rows.start))

    def forward(self, x_bchw: Tensor, member: int = 0, states: Sequence[Any] = ()) -> Tensor:
        """Return the labels and types of the nuclei of each block."""
        maps = [np.stack([one.inst_hw, np.append(0, one.types_n)[one.inst_hw]]) for one in states]
        return torch.from_numpy(np.stack(maps)).to(x_bchw)


def _given(value: str | None, key: str, argument: str, expected: str) -> str:
    """Return a path from the configuration, or say what it should be."""
    if not value:
        msg = f"{key}.{argument} is not given: expected {expected}."
        raise ConfigError(msg)
    return value


def _note(metadata: Mapping[str, str], source: str) -> Mapping[str, Any]:
    try:
        note = json.loads(metadata.get("ihc2he", "{}"))
    except json.JSONDecodeError as error:
        msg = f"{source}: its metadata 'ihc2he' is not JSON ({error}). Export it again."
        raise DataError(msg) from error
    if not isinstance(note, dict):
        msg = f"{source}: its metadata 'ihc2he' is no JSON object. Export it again."
        raise DataError(msg)
    return note


def _decoder(
    source: str, given: Mapping[str, Any] | None, noted: Mapping[str, Any] | None
) -> tuple[Decoder, dict[str, Any]] | None:
    """Return a decoder and the node that builds it; None if neither the configuration nor the file has one."""
    settings = {name: value for name, value in (given or {}).items() if value is not None}
    if "_target_" in settings:
        return build(settings, Decoder), settings  # type: ignore[type-abstract]
    if not noted:
        return None
    refuse_foreign(noted)
    return changed_decoder(source, build(noted, Decoder), noted, settings)  # type: ignore[type-abstract]


def _fitted(run: Run, side: Side, x_bchw: Tensor) -> list[Tensor]:
    """Return the outputs for images that are extended to an accepted size."""
    height, width = x_bchw.shape[-2:]
    right, bottom = side.next(width) - width, side.next(height) - height
    mode = "reflect" if right < width and bottom < height else "replicate"  # a reflection is shorter than the image
    return run(F.pad(x_bchw, (0, right, 0, bottom), mode=mode))


def _maps(run: Run, side: Side, x_bchw: Tensor, of: Segmenter, decoder: Decoder, window: int, overlap: int) -> Tensor:
    """Return the joined maps of images, from overlapping windows.

    Raises:
        DataError: if the network gives others than its decoder reads.
    """
    raw = {name: torch.zeros(1, count, 1, 1) for name, count in decoder.channels(len(of.classes)).items()}
    count = decoder.join(raw).shape[1]

    def fn(window_bchw: Tensor) -> Tensor:
        maps_bkhw = _fitted(run, side, window_bchw)[0]
        height, width = window_bchw.shape[-2:]
        size = (side.next(height), side.next(width))
        if maps_bkhw.shape[1] != count or maps_bkhw.shape[2:] != size:
            msg = (
                f"{of.source}: gave {maps_bkhw.shape[1]} maps of {tuple(maps_bkhw.shape[2:])} px for {size}, "
                f"{type(decoder).__name__} with {len(of.classes)} classes reads {count} of the same size."
            )
            raise DataError(msg)
        return maps_bkhw[..., :height, :width].float()

    return predict_tiled(fn, x_bchw, window, overlap, batch_size=1)


def _order(source: str, output: Mapping[str, Any]) -> list[int]:
    """Return where an output has its batch, channel, y and x."""
    names = [axis["type"] if axis["type"] in ("batch", "channel") else axis.get("id") for axis in output["axes"]]
    wanted = ["batch", "channel", "y", "x"]
    if sorted(map(str, names)) != sorted(wanted):
        msg = f"{source}: its output '{output.get('id')}' has the axes {names}; expected a map: {wanted}."
        raise ConfigError(msg)
    return [names.index(name) for name in wanted]


def _rows(outputs: Sequence[Mapping[str, Any]]) -> tuple[int | None, list[str]]:
    """Return which output has a row for each nucleus with its class, and what its values mean."""
    for kind in ("detection_classes", "detection_logits"):
        for number, output in enumerate(outputs):
            values = (output.get("data") or {}).get("values")
            if str(output.get("id")).startswith(kind) and values:
                return number, [str(value) for value in values]
    return None, []


def _nuclei(found: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the features that are nuclei: all, or detections and cells where there are some."""
    each = list(found)
    kinds = [(feature.get("properties") or {}).get("objectType") for _, feature in each]
    if {"detection", "cell"} & set(kinds):
        return [one for one, kind in zip(each, kinds, strict=True) if kind in ("detection", "cell")]
    return each
