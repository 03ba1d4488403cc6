"""What the pipeline predicts for an image without truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ihc2he.models.pipeline.assembly import Strip, TileNuclei
from ihc2he.models.pipeline.blocks import OpenImage
from ihc2he.models.pipeline.types import TypeMap
from ihc2he.stain.white import FULL, White


@dataclass(frozen=True)
class Prediction:
    """The prediction of an image, or of a strip of a large one; strips come from top to bottom.

    Attributes:
        name: of the image.
        path: of its file.
        error: why the file could not be read; then the rest is None. What came before it of the image is void.
        image: the IHC, HxWx3 uint8; as many rows as the map of `nuclei`.
        he: the translated H&E of the final rows; None if nothing was translated.
        nuclei: found here, of types as `classes` names them.
        mpp: um/px.
        classes: names of the types from 1.
        white: white point of the IHC.
        ink_share: share of the image that ink covers.
        shape: height and width of the whole image; None: those of `image`, which is the whole.
        top: first row in the image.
        inst_hw: ids in the final rows; None: the map of `nuclei`. The next strip starts where they end.
    """

    name: str
    path: str
    error: str | None
    image: NDArray[np.uint8] | None
    he: NDArray[np.uint8] | None
    nuclei: TileNuclei | None
    mpp: float
    classes: list[str]
    white: White = FULL
    ink_share: float = 0.0
    shape: tuple[int, int] | None = None
    top: int = 0
    inst_hw: NDArray[np.int32] | None = None

    @property
    def whole_shape(self) -> tuple[int, int]:
        """Height and width of the whole image."""
        assert self.image is not None
        return self.image.shape[:2] if self.shape is None else self.shape  # type: ignore[return-value]

    @property
    def final_hw(self) -> NDArray[np.int32]:
        """Ids in the final rows."""
        assert self.nuclei is not None
        return self.nuclei.inst_hw if self.inst_hw is None else self.inst_hw

    @property
    def last(self) -> bool:
        """Whether the image ends here."""
        return self.error is not None or self.top + len(self.final_hw) == self.whole_shape[0]


def prediction_of(image: OpenImage, strip: Strip, types: TypeMap) -> Prediction:
    """Return what is final of an image after a row of blocks, with the types of nuclei as classes of the keypoints."""
    return Prediction(
        name=image.tile["name"],
        path=image.tile["path"],
        error=None,
        image=image.rows(),
        he=strip.he,
        nuclei=types.apply(strip.nuclei),
        mpp=image.mpp,
        classes=types.classes,
        white=image.source.white,
        ink_share=image.ink.share,
        shape=image.source.shape,
        top=strip.top,
        inst_hw=strip.inst_hw,
    )
