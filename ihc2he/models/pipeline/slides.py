"""The pipeline on windows of whole slides: what is known of a slide is known once, and windows stand for themselves.

Shape suffixes: h, w = height, width; n = nuclei; 2 = (x, y).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ihc2he.errors import ConfigError, DataError
from ihc2he.images.masks import Ink
from ihc2he.internals.onednn import forget_shapes
from ihc2he.models.pipeline.blocks import Piece, prepared
from ihc2he.models.pipeline.module import Pipeline
from ihc2he.models.pipeline.segmenters import Segmenter
from ihc2he.models.pipeline.translators import Translator
from ihc2he.models.pipeline.types import TypeMap, type_map
from ihc2he.nuclei.decoders.base import Found
from ihc2he.tiling.windows import OVERLAP_UM


@dataclass(frozen=True)
class WindowPrediction:
    """What is found in a window of a slide.

    Attributes:
        name: of the slide.
        number: of the window.
        plan: of the slide; None: the slide cannot be read.
        error: why there is nothing else.
        image: the IHC, hxwx3 uint8.
        he: its translation; None if nothing was translated.
        found: all nuclei, in px of the window; types as `SlidePipeline.class_names` has them.
        agreement_n: share of the votes of an ensemble.
    """

    name: str
    number: int
    plan: Any
    error: str | None = None
    image: NDArray[np.uint8] | None = None
    he: NDArray[np.uint8] | None = None
    found: Found | None = None
    agreement_n: NDArray[np.float32] | None = None


class _OpenSlide:
    """A slide of which windows are under way, with what `ihc2he.models.pipeline.blocks` asks of an image.

    Args:
        plan: of the slide.
        translators: by name.
        segmenters: those of each translator, by name.

    Raises:
        DataError: if it cannot be read.
        ConfigError: for a translator that needs aligned H&E, which no slide has.
    """

    def __init__(
        self, plan: Any, translators: Mapping[str, Translator], segmenters: Mapping[str, Mapping[str, Segmenter]]
    ) -> None:
        for name, translator in translators.items():
            if translator.needs_he:
                msg = f"model.use.translators=[{name}]: a slide has no aligned H&E. Choose another translator."
                raise ConfigError(msg)
        self.plan = plan
        self.source = plan.open(forgiving=True)
        self.mpp, self.blocks = plan.grid_mpp, plan.blocks
        self.inputs = dict.fromkeys(translators, self.source)
        self.ink = Ink(np.zeros((1, 1), bool), plan.grid)  # no tissue lies under ink
        self.states = {
            name: (own.prepare if len(self.blocks) == 1 else own.prepare_divided)(self.source)
            for name, own in translators.items()
        }
        self.prepared = prepared(plan.name, self.inputs, self.mpp, translators, self.states, segmenters, self.blocks)
        self.whites = {name: own.white_of(self.source) for name, own in translators.items()}


class SlidePipeline(Pipeline):
    """Finds nuclei in windows of slides, of which any rank may have any; batches as `ihc2he.data.slides` has them."""

    _open: tuple[str, _OpenSlide] | None = None  # the slide of the last window

    def setup(self, stage: str) -> None:
        """Prepare for windows of many shapes, which end where tissue ends.

        Raises:
            ConfigError: if the methods do not fit.
        """
        forget_shapes()  # before the first network runs
        super().setup(stage)

    @property
    def working_mpp(self) -> float:
        """The pixel size at which slides are read, um/px: the finest that the translator and the segmenter need."""
        (pair,) = self.pairs
        if self.segmenters[pair.segmenter].mpp is None:
            msg = (
                f"model.segmenters.{pair.segmenter} is for tiles: experiment=predict_tiles. Slides are segmented here."
            )
            raise ConfigError(msg)
        needs = (self.translators[pair.translator].mpp, self.segmenters[pair.segmenter].mpp)
        return min(mpp for mpp in needs if mpp is not None)  # type: ignore[type-var, return-value]

    @property
    def halo_um(self) -> float:
        """What windows show around what they keep: enough to find alike in all, and what a local translator sees."""
        (pair,) = self.pairs
        translator: Any = self.translators[pair.translator]
        sees = 0.0 if translator.reach is None else translator.reach * (translator.mpp or self.working_mpp)
        return max(OVERLAP_UM, sees)

    @property
    def _types(self) -> TypeMap:
        (pair,) = self.pairs
        return type_map(pair.segmenter, self.segmenters[pair.segmenter].classes, self.class_map)  # type: ignore[arg-type]

    @property
    def class_names(self) -> list[str]:
        """The names of the types of nuclei from 1."""
        return self._types.classes

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[WindowPrediction]:  # type: ignore[override]
        """Return what was found in the windows that are ready, at the end in all; or why a window has nothing."""
        last = batch_idx + 1 == self.trainer.num_predict_batches[0]
        failed: list[WindowPrediction] = []
        pieces: list[Piece] = []
        for name, number, plan, image, error in zip(*batch.values(), strict=True):
            if error is None:
                try:
                    pieces.append(Piece(self._slide(plan), number, image))  # type: ignore[arg-type]
                except DataError as problem:
                    error = str(problem)  # noqa: PLW2901
            if error is not None:
                failed.append(WindowPrediction(name, number, plan, error))
        return failed + [self._window(piece) for piece in self._found(pieces, batch, last)]

    def _slide(self, plan: Any) -> _OpenSlide:
        if self._open is None or self._open[0] != plan.name:
            segmenters = {name: self._segmenters_of(name) for name in self._running}
            self._open = plan.name, _OpenSlide(plan, self._running, segmenters)
        return self._open[1]

    def _window(self, piece: Piece) -> WindowPrediction:
        (pair,) = self.pairs
        (part,) = piece.parts.values()
        found, agreement_n = part.job.result()
        nuclei = found.nuclei._replace(types_n=self._types.class_k[found.nuclei.types_n] + 1)
        translated = self.translators[pair.translator].role != "none"
        plan = piece.image.plan  # type: ignore[attr-defined]
        he = part.he if translated else None
        return WindowPrediction(
            plan.name, piece.number, plan, None, piece.pixels, he, found._replace(nuclei=nuclei), agreement_n
        )
