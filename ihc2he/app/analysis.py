"""Nuclei of a region of an image, with the networks that a page offers.

Shape suffixes: h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from ihc2he.build import build
from ihc2he.config import config_dir
from ihc2he.errors import ConfigError
from ihc2he.images.rescaled import Rescaled
from ihc2he.images.source import ArraySource, ImageSource
from ihc2he.models.handover import Handover
from ihc2he.models.pipeline.assembly import Strip, TileNuclei, joined
from ihc2he.models.pipeline.blocks import OpenImage, Piece, pieces_of
from ihc2he.models.pipeline.inference import predict, submit
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Learned
from ihc2he.models.pipeline.translators import Translator
from ihc2he.nuclei.table import IHC_STAINS, NucleiTable, nuclei_table
from ihc2he.stain.white import White
from ihc2he.tiling.resampling import resized_labels

SEGMENTER = "centres"
UNTRAINED = ("none", "recolour", "macenko", "reinhard")  # translators that need no weights
REGION_PX = 2**24  # largest region, in px of the grid that is analysed
COARSEST = 4  # times the pixel size that the networks need: coarser images would be enlarged beyond all memory

Say = Callable[[int, int], None]  # is told how many of how many blocks are done; may raise to stop


@dataclass(frozen=True)
class Region:
    """A rectangle in px of an image.

    Attributes:
        left: first column.
        top: first row.
        width: px.
        height: px.
    """

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Field:
    """What was found in a region, on the grid that was analysed.

    Attributes:
        name: of the image.
        region: in the image.
        image: the IHC, hxwx3 uint8.
        mpp: um/px of the grid.
        full_mpp: um/px of the image.
        white: colour of the glass.
        ink_share: share of the region that ink covers.
        translator: its name.
        he: what it made; None: nothing was translated.
        nuclei: as the network found them.
        votes_hw: where it sees nucleus, also without a centre.
        classes: names of the types from 1.
        table: measurements of the nuclei, with their scores.
        seconds: that it took.
    """

    name: str
    region: Region
    image: NDArray[np.uint8]
    mpp: float
    full_mpp: float
    white: White
    ink_share: float
    translator: str
    he: NDArray[np.uint8] | None
    nuclei: TileNuclei
    votes_hw: NDArray[np.bool_]
    classes: list[str]
    table: NucleiTable
    seconds: float

    @property
    def scale(self) -> tuple[float, float]:
        """Px of the image per px of the grid, across and down."""
        height, width = self.image.shape[:2]
        return self.region.width / width, self.region.height / height

    @property
    def area_mm2(self) -> float:
        """Area of the region without ink."""
        return self.image.shape[0] * self.image.shape[1] * self.mpp**2 / 1e6 * (1 - self.ink_share)


class Networks:
    """The segmenter, and the translators by name, built when they are first used.

    Args:
        weights: of the segmenter, see `ihc2he.models.pipeline.segmenters.Learned`.
        generator: weights from IHC to H&E; None: without a trained translator.

    Raises:
        ConfigError: for weights of another kind.
        DataError: for weights that cannot be read.
    """

    def __init__(self, weights: str = "builtin", generator: str | None = None) -> None:
        is_path = weights != "builtin" and Path(weights).exists()
        self.weights = str(Path(weights).resolve()) if is_path else weights  # a child runs in another folder
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.segmenter = Learned(weights, name=SEGMENTER)
        self.segmenter.fold()
        self.segmenter.to(self.device)
        self._nodes: dict[str, dict[str, Any]] = {name: _node(name) for name in UNTRAINED}
        if generator:
            self._nodes["cyclegan"] = {**_node("cyclegan"), "weights": generator}
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = Lock()
        if generator:
            self.pipeline("cyclegan")  # to complain at the start

    @property
    def names(self) -> list[str]:
        """The translators that can be chosen."""
        return list(self._nodes)

    def pipeline(self, translator: str) -> Pipeline:
        """Return the pipeline with a translator.

        Raises:
            ConfigError: for another name, or if a package is missing that it needs.
        """
        with self._lock:
            if translator not in self._nodes:
                msg = f"There is no translator '{translator}'; choose one of {', '.join(self._nodes)}."
                raise ConfigError(msg)
            if translator not in self._pipelines:
                built = {translator: build(self._nodes[translator], Translator)}  # type: ignore[type-abstract]
                use = {"translators": [translator], "segmenters": [SEGMENTER]}
                made = Pipeline(built, {SEGMENTER: self.segmenter}, use, workers=0)
                self._pipelines[translator] = made.to(self.device).eval()
            return self._pipelines[translator]


def _node(name: str) -> dict[str, Any]:
    """Return the configuration of a translator as it is shipped."""
    found: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / "translator" / f"{name}.yaml"))
    return found


def whole(source: ImageSource) -> Region:
    """Return the region that is the whole image."""
    return Region(0, 0, source.shape[1], source.shape[0])


def analyse(
    networks: Networks, source: ImageSource, mpp: float, translator: str, region: Region | None, say: Say
) -> Field:
    """Return the nuclei of a region of an image.

    The whole of an image is analysed on its own pixels, as in `experiment=predict_tiles`; a part of it at the pixel
    size that the networks need, as in `experiment=predict_slides`, or at its own if that is coarser.

    Args:
        networks: that are used.
        source: the image.
        mpp: its um/px.
        translator: name.
        region: of the image; None: all of it.
        say: is told of the progress.

    Raises:
        ConfigError: for a region that is too large, too small or outside of the image, or pixels that are too coarse.
        DataError: if the image cannot be read.
    """
    start = time.perf_counter()
    pipeline = networks.pipeline(translator)
    need = _needed(pipeline)
    if mpp > COARSEST * need:
        msg = (
            f"At {mpp:g} um/px no nucleus can be made out: the networks need {need:g}, and at most {COARSEST * need:g} "
            "can be used. Check the pixel size."
        )
        raise ConfigError(msg)
    part, region = _part(pipeline, source, mpp, region)
    image = OpenImage(
        {"name": source.name, "mpp": part.mpp, "open": lambda: part}, pipeline.divide, _own(pipeline), None
    )
    votes_hw = np.zeros(part.shape, bool)
    strips: list[Strip] = []
    handover = Handover[Piece](0)
    try:
        for number in range(len(image.blocks)):
            say(number, len(image.blocks))
            (piece,) = pieces_of(image, number)
            votes_hw[piece.block.rows, piece.block.columns] |= _find(networks, pipeline, piece, handover)
            strips += image.add(piece, blend=True).values()
    finally:
        handover.close()
    he, nuclei = joined(strips)
    table = nuclei_table(
        nuclei.inst_hw, nuclei.types_n, nuclei.shares_n,
        mpp=image.mpp, image=part.whole(), stains=IHC_STAINS, white=part.white,
    )  # fmt: skip
    table = replace(table, extra={"score": nuclei.scores_n})
    translated = _own(pipeline)[translator].role != "none"
    return Field(
        source.name, region, part.whole(), image.mpp, mpp, part.white, image.ink.share, translator,
        he if translated else None, nuclei, votes_hw, list(networks.segmenter.classes), table,
        time.perf_counter() - start,
    )  # fmt: skip


def _own(pipeline: Pipeline) -> Mapping[str, Translator]:
    return dict(pipeline.translators.items())  # type: ignore[arg-type]


def _needed(pipeline: Pipeline) -> float:
    """Return the finest pixel size that the networks need."""
    needs = [pipeline.segmenters[SEGMENTER].mpp, *(own.mpp for own in _own(pipeline).values())]
    return min(need for need in needs if need is not None)  # type: ignore[type-var, return-value]


def _part(pipeline: Pipeline, source: ImageSource, mpp: float, region: Region | None) -> tuple[ArraySource, Region]:
    """Return the pixels to analyse, with the white point of the whole image."""
    everything = whole(source)
    height, width = source.shape
    if region in (None, everything) and height * width <= REGION_PX:
        return ArraySource(source.whole(), mpp, source.name, source.white), everything
    region = region or everything
    inside = 0 <= region.left < region.left + region.width <= width
    if not inside or not 0 <= region.top < region.top + region.height <= height:
        msg = f"The region {region} is not inside of the image, {width} x {height} px. Choose another one."
        raise ConfigError(msg)
    grid_mpp = max(mpp, _needed(pipeline))
    factor = grid_mpp / mpp
    if region.width * region.height / factor**2 > REGION_PX:
        side = REGION_PX**0.5 * grid_mpp / 1000
        msg = (
            f"The region of {region.width * mpp / 1000:.2g} x {region.height * mpp / 1000:.2g} mm is too large: at "
            f"most {side:.2g} x {side:.2g} mm are analysed at once. Zoom in, draw a smaller one, or use "
            "experiment=predict_slides for the whole slide."
        )
        raise ConfigError(msg)
    sized = copy(source)
    sized.mpp = mpp
    scaled = Rescaled(sized, grid_mpp)
    columns = slice(round(region.left / factor), min(round((region.left + region.width) / factor), scaled.shape[1]))
    rows = slice(round(region.top / factor), min(round((region.top + region.height) / factor), scaled.shape[0]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        msg = f"The region {region} is smaller than a px of {grid_mpp:g} um, with which it is analysed. Enlarge it."
        raise ConfigError(msg)
    pixels = scaled.read(rows, columns)
    exact = Region(
        round(columns.start * factor), round(rows.start * factor),
        round(pixels.shape[1] * factor), round(pixels.shape[0] * factor),
    )  # fmt: skip
    return ArraySource(pixels, grid_mpp, source.name, source.white), exact


def _find(networks: Networks, pipeline: Pipeline, piece: Piece, handover: Handover[Piece]) -> NDArray[np.bool_]:
    """Give a block the promise of its nuclei; return where the network sees nucleus."""
    ((name, translator),) = _own(pipeline).items()
    image, segmenter = piece.image, networks.segmenter
    x_bchw = torch.from_numpy(piece.pixels[None]).to(networks.device).permute(0, 3, 1, 2).float() / 255
    maps = predict(translator, {SEGMENTER: segmenter}, x_bchw, image.mpp, states=[image.states[name]])[SEGMENTER]
    ink_hw = image.ink.region(piece.block.rows, piece.block.columns)
    (piece.parts[pipeline.methods[0]],) = submit(handover, segmenter, maps, [image.whites[name]], [ink_hw])
    seen_bhw = segmenter.votes(maps.maps_bkhw)
    height, width = piece.pixels.shape[:2]
    if seen_bhw is None:
        return np.zeros((height, width), bool)
    return resized_labels(seen_bhw[0].cpu().numpy().astype(np.uint8), height, width) > 0
