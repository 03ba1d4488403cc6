"""Augmentation of H&E crops with nuclei: geometry for image and labels, colour only for the image."""

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ihc2he.build import build
from ihc2he.data.painting import Painter
from ihc2he.errors import require_setting
from ihc2he.stain.deconvolution import DAB, EOSIN, HEMATOXYLIN, optical_density, unmixing_matrix

_ELASTIC_REACH = 12.0  # px, distance over which displacements are similar: about a nucleus at 0.25 um/px
_SQUARES = (1, 8)  # that hide parts of a crop
_UNMIX_cs = unmixing_matrix((HEMATOXYLIN, EOSIN, DAB))
_MIX_sc = np.linalg.inv(_UNMIX_cs)

Labels = NDArray[np.int32]


class NucleiAugmentation:
    """Random changes of a crop and its label maps, with albumentations; each argument is the largest change, 0 = off.

    Geometric changes move image and labels together (labels by nearest neighbour), and fill the border by reflection.
    Colour and sharpness change only the image. Scale, HSV and HED are applied to half of the crops; elastic, blur and
    noise to a quarter.

    Args:
        dihedral: rotations by multiples of 90 degrees and flips, all eight equally likely; true or false.
        scale: relative change of size: 0.2 = factors of 0.8 to 1.2.
        elastic: standard deviation of the displacements, px.
        blur: sigma of a Gaussian, px.
        noise: standard deviation of Gaussian noise, as a fraction of white.
        hed: change of the hematoxylin, eosin and residual stain: factors of 1 - hed to 1 + hed, and shifts of -hed to
            +hed in optical density (Tellez et al., Med Image Anal 2019: 0.05 = light, 0.2 = strong).
        hsv: change of saturation and value, as a fraction of their range; hue changes by a quarter of that.
        cutout: side of black squares that hide parts of half of the crops, as a fraction of the crop; labels stay.
        paint: a `Painter`, or its configuration, which paints some of the crops as IHC before all other changes; None:
            none.

    Raises:
        ConfigError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        dihedral: bool = True,
        scale: float = 0.2,
        elastic: float = 1.5,
        blur: float = 1.0,
        noise: float = 0.03,
        hed: float = 0.05,
        hsv: float = 0.1,
        cutout: float = 0.0,
        paint: dict[str, Any] | Painter | None = None,
    ) -> None:
        for name, value, limit in (
            ("scale", scale, 0.9),
            ("elastic", elastic, _ELASTIC_REACH / 2),  # above this, the tissue folds
            ("blur", blur, 10),
            ("noise", noise, 1),
            ("hed", hed, 1),
            ("hsv", hsv, 1),
            ("cutout", cutout, 0.5),
        ):
            require_setting("data.augmentation", name, value, 0 <= value <= limit, f"from 0 to {limit}")
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import asks a server for updates
        import albumentations as A

        reflect = cv2.BORDER_REFLECT_101
        steps: list[A.BasicTransform] = []
        if dihedral:
            steps.append(A.D4(p=1))
        if scale:
            steps.append(A.Affine(scale=(1 - scale, 1 + scale), border_mode=reflect, p=0.5))
        if elastic:
            # The displacements are noise in [-1, 1] with standard deviation 1 / sqrt(3). Smoothing with a Gaussian
            # multiplies this by 1 / (2 sqrt(pi) sigma).
            alpha = elastic * np.sqrt(3) * 2 * np.sqrt(np.pi) * _ELASTIC_REACH
            steps.append(
                A.ElasticTransform(
                    alpha=alpha, sigma=_ELASTIC_REACH, noise_distribution="uniform", border_mode=reflect, p=0.25
                )
            )
        if hsv:
            limit = 255 * hsv
            steps.append(
                A.HueSaturationValue(hue_shift_limit=180 * hsv / 4, sat_shift_limit=limit, val_shift_limit=limit, p=0.5)
            )
        if blur:
            steps.append(A.GaussianBlur(sigma_limit=(0.1, max(0.1, blur)), p=0.25))
        if noise:
            steps.append(A.GaussNoise(std_range=(0, noise), p=0.25))
        if cutout:
            sides = (cutout / 4, cutout)
            steps.append(A.CoarseDropout(_SQUARES, hole_height_range=sides, hole_width_range=sides, p=0.5))
        self.moves = bool(dihedral or scale or elastic)
        self.paint = None if paint is None else build(paint, Painter)
        self.hed = hed
        self.steps = A.Compose(steps)

    def prepare(self) -> None:
        """Measure what the painter needs, before the first call."""
        if self.paint is not None:
            self.paint.prepare()

    def paints(self, seed: int) -> bool:
        """Return whether a call with this seed paints the crop as IHC."""
        return self.paint is not None and self.paint.paints(seed)

    def __call__(
        self, image: NDArray[np.uint8], labels: Sequence[Labels], seed: int
    ) -> tuple[NDArray[np.uint8], list[Labels]]:
        """Return the changed image and its changed label maps; the same seed gives the same change.

        Args:
            image: HxWx3 uint8 RGB, square.
            labels: HxW int32 maps with values below 2^24: nuclei, and perhaps their types.
            seed: of all randomness.
        """
        if self.paint is not None:
            image = self.paint(image, labels[0], labels[1] if len(labels) > 1 else None, seed)
        rng = np.random.default_rng(seed)
        if self.hed and rng.random() < 0.5:
            factors_s, shifts_s = rng.uniform(-self.hed, self.hed, (2, 3))
            image = change_stains(image, 1 + factors_s, shifts_s)
        # Not Compose.set_random_seed, which gives every step its own copy of the same random stream.
        self.steps.set_random_state(rng, random.Random(seed))
        # OpenCV cannot warp int32. All maps are moved at once; float32 is exact for these values.
        done = self.steps(image=image, mask=np.stack(labels, -1).astype(np.float32))
        maps_hwn = done["mask"].reshape(*done["image"].shape[:2], len(labels))
        return done["image"], [np.ascontiguousarray(maps_hwn[..., i], np.int32) for i in range(len(labels))]


def change_stains(image: NDArray[np.uint8], factors_s: NDArray, shifts_s: NDArray) -> NDArray[np.uint8]:
    """Return an image whose stains are stronger or weaker.

    Args:
        image: HxWx3, uint8 RGB.
        factors_s: three factors for the concentrations of hematoxylin, eosin and DAB.
        shifts_s: three shifts that are added to them, in optical density.

    >>> pixel = np.array([[[150, 80, 160]]], np.uint8)
    >>> change_stains(pixel, np.ones(3), np.zeros(3)).tolist()
    [[[150, 80, 160]]]
    >>> change_stains(pixel, np.full(3, 2), np.zeros(3)).tolist()  # twice the optical density: 150^2 / 255 = 88
    [[[88, 25, 100]]]
    """
    mixed_cc = ((_UNMIX_cs * factors_s) @ _MIX_sc).astype(np.float32)
    od_hwc = optical_density(image) @ mixed_cc + (shifts_s @ _MIX_sc).astype(np.float32)
    light_hwc = np.exp(od_hwc * np.float32(-np.log(10))) * np.float32(255)
    return np.clip(np.rint(light_hwc, out=light_hwc), 0, 255, out=light_hwc).astype(np.uint8)
