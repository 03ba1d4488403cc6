"""Annotated H&E painted as IHC: the nuclei stay where their labels are, so a network can learn from it to read IHC.

Hematoxylin and eosin are unmixed; hematoxylin is drawn again paler, eosin becomes a faint tint, and DAB is put on the
nuclei, membranes or cytoplasm of some of the cells. All lengths are in um.
Shape suffixes: h, w = height, width; c = colour (3); n = labels from 0; m = pixels; s = stain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from ihc2he.stain.deconvolution import optical_density, unmixing_matrix
from ihc2he.stain.looks import Look, Ranges, draw_look
from ihc2he.stain.measuring import Vector
from ihc2he.stain.noise import Map, smooth_noise
from ihc2he.stain.recolour import EOSIN, HEMATOXYLIN

_SAMPLE = 40  # px; percentiles are taken of a grid of about this side
_DARKEST_GLASS = 0.06  # optical density up to which the brightest part of a crop counts as glass
_GLASS, _TISSUE = 0.02, 0.08  # mean optical density: up to the one nothing is stained, from the other on all is
_STAINED = 0.1  # mean optical density of pixels that tell the stain vectors
_LEAST = 50  # number of these
_APART = 0.15  # least difference of red between unit vectors of hematoxylin and eosin
_COARSE = 0.5  # um, pixel size at which the borders of cells are found; smaller pixels are left out
_FAR = 1e6  # px
_CROWD = 10.0  # um, half of the side of the square in which nuclei are crowded or not
_PATCH, _SHARE = 40.0, 0.3  # um, size of patches of positive cells; largest share of positive cells in a negative type
_FRAGMENT, _UNEVEN = 3.0, 60.0  # um, size of the gaps in membranes, and of changes of strength
_SOFTEST = 0.6  # px, least sigma of an outline, because labels have steps
_DENSE = 0.45  # DAB above which it scatters
_COVERED = 0.85  # share of cytoplasmic DAB that is missing over nuclei
_HALO, _UNSHARP, _GRAIN, _NEAR, _FADE = 1.5, 0.5, 0.3, 0.6, 1.0  # um
_SHIFT = 97  # px, between the noise of the channels
_NORMAL_256 = ndtri((np.arange(256) + 0.5) / 256).astype(np.float32)
_OD_256 = optical_density(np.arange(256, dtype=np.uint8))


class _HE(NamedTuple):
    """What the H&E shows: each map is about 1 where there is as much as in a typical nucleus or in dense stroma."""

    hematoxylin_hw: Map
    eosin_hw: Map
    tissue_hw: Map  # 0 on glass, 1 on tissue


def paint(
    image: NDArray[np.uint8],
    inst_hw: NDArray[np.int32],
    mpp: float,
    rng: np.random.Generator,
    ranges: Ranges | None = None,
    type_hw: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Return an H&E crop painted as IHC of a slide drawn from ranges; the same generator state gives the same bytes.

    Args:
        image: HxWx3 uint8 RGB.
        inst_hw: nuclei from 1, 0 = background.
        mpp: um/px.
        rng: source of randomness.
        ranges: from what to what slides differ; None: the defaults.
        type_hw: types of the nuclei, 0 = none; None: the share of positive cells does not follow them.

    >>> white, nothing = np.full((32, 32, 3), 255, np.uint8), np.zeros((32, 32), np.int32)
    >>> paint(white, nothing, 0.25, np.random.default_rng(0)).shape
    (32, 32, 3)
    """
    return paint_as(draw_look(ranges or Ranges(), rng), image, inst_hw, mpp, rng, type_hw)


def paint_as(
    look: Look,
    image: NDArray[np.uint8],
    inst_hw: NDArray[np.int32],
    mpp: float,
    rng: np.random.Generator,
    type_hw: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Return an H&E crop painted as IHC of a given slide; the arguments are those of `paint`.

    Raises:
        ValueError: where image and labels differ in size.
    """
    if any(labels.shape != image.shape[:2] for labels in (inst_hw, type_hw) if labels is not None):
        msg = f"Expected labels of the image's size {image.shape[:2]}, found {inst_hw.shape}."
        raise ValueError(msg)
    nuclei_hw = inst_hw > 0
    edge = max(look.edge / mpp, _SOFTEST)
    inside_hw = cv2.GaussianBlur(nuclei_hw.astype(np.float32), (0, 0), edge)
    he = _unmixed(image, nuclei_hw)
    uneven_hw = np.maximum(1 + look.unevenness * _field(inst_hw.shape, _UNEVEN / mpp, rng), 0.1)
    noise_m = _white_noise(inst_hw.size + 2 * _SHIFT, rng)
    grain_hw = cv2.GaussianBlur(noise_m[: inst_hw.size].reshape(inst_hw.shape), (0, 0), _GRAIN / mpp)
    dab_hw = look.background * (0.4 + 0.6 * he.eosin_hw)
    if nuclei_hw.any() and look.positive:
        amount_n = _amounts(look, inst_hw, type_hw, mpp, rng)
        if look.site == "nucleus":
            dab_hw += _in_nuclei(look, amount_n, inst_hw, edge, he, mpp)
        else:
            dab_hw += _on_cells(look, amount_n, inst_hw, inside_hw, he, mpp, rng)
    side = 2 * round(_NEAR / mpp) + 1  # cracks as narrow as this are stained too
    dab_hw *= np.maximum(uneven_hw * (1 + look.grain * (2 * _GRAIN / mpp) * grain_hw), 0)
    dab_hw *= np.minimum(1.5 * cv2.blur(he.tissue_hw, (side, side)), 1)
    od_hws = cv2.merge(
        [
            _counterstain(look, he, inside_hw) * cv2.exp(-look.blocking * dab_hw),
            dab_hw,
            look.stroma * he.eosin_hw * he.tissue_hw,
            look.scatter * np.maximum(dab_hw - _DENSE, 0),
        ]
    )
    return _scanned(look, od_hws, noise_m, mpp)


def _white_noise(size: int, rng: np.random.Generator) -> Map:
    """Return standard normal values, of 256 levels; six times as fast as `standard_normal`."""
    return cv2.LUT(np.frombuffer(rng.bytes(size), np.uint8), _NORMAL_256).ravel()


def _field(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Map:
    """Return `smooth_noise`, made on a coarse grid where `scale` px is long."""
    step = max(1, int(scale / 6))
    coarse_hw = smooth_noise((shape[0] // step + 1, shape[1] // step + 1), scale / step, rng)
    return cv2.resize(coarse_hw, shape[::-1])


def _unmixed(image: NDArray[np.uint8], nuclei_hw: NDArray[np.bool_]) -> _HE:
    od_hwc: Map = cv2.LUT(image, _OD_256)
    step = max(1, min(image.shape[:2]) // _SAMPLE)
    sample_mc = optical_density(image[::step, ::step]).reshape(-1, 3)
    inside_m = nuclei_hw[::step, ::step].ravel()
    floor_c = np.minimum(np.sort(sample_mc, axis=0)[len(sample_mc) // 100], _DARKEST_GLASS)
    sample_mc = sample_mc - floor_c.astype(np.float32)
    unmix_cs = np.column_stack([unmixing_matrix(_vectors(sample_mc)), np.full(3, 1 / 3)])  # and the mean
    h_m, e_m, mean_m = (sample_mc @ unmix_cs).T
    tissue_m = mean_m > _TISSUE
    typical = _quantile(h_m[inside_m], 0.75) if inside_m.any() else _quantile(h_m, 0.99)
    dense = _quantile(e_m[tissue_m], 0.9)
    scale_s = np.array([1 / max(typical, 0.1), 1 / max(dense, 0.05), 1 / (_TISSUE - _GLASS)])
    rows_s3 = (unmix_cs * scale_s).T
    shift_s = -rows_s3 @ floor_c - np.array([0, 0, _GLASS / (_TISSUE - _GLASS)])
    h_hw, e_hw, tissue_hw = cv2.split(cv2.transform(od_hwc, np.column_stack([rows_s3, shift_s]).astype(np.float32)))
    tissue_hw = np.clip(tissue_hw, 0, 1)
    return _HE(np.clip(h_hw, 0, 2) * tissue_hw, np.clip(e_hw, 0, 1.5), tissue_hw)


def _quantile(value_m: NDArray[np.floating], share: float) -> float:
    """Return the value below which a share of others lie; 0 of none. NumPy's own costs more than the rest."""
    return float(np.sort(value_m)[int(share * len(value_m))]) if len(value_m) else 0.0


def _vectors(od_mc: NDArray[np.float32]) -> tuple[Vector, Vector]:
    """Return hematoxylin and eosin of a crop by Macenko's method, or the published ones where that fails."""
    od_mc = od_mc[od_mc.sum(1) > 3 * _STAINED]
    if len(od_mc) < _LEAST:
        return HEMATOXYLIN, EOSIN
    deviation_mc = od_mc - od_mc.mean(0)
    _, axes_cs = np.linalg.eigh(deviation_mc.T @ deviation_mc)
    plane_c2 = axes_cs[:, 1:] * np.where(axes_cs[:, 1:].sum(0) < 0, -1, 1)
    angle_m = np.arctan2(*(od_mc @ plane_c2).T)
    ends_2 = _quantile(angle_m, 0.01), _quantile(angle_m, 0.99)
    ends_c2 = plane_c2 @ np.array([(np.sin(a), np.cos(a)) for a in ends_2]).T
    eosin_c, hematoxylin_c = ends_c2.T[np.argsort(ends_c2[0])]
    if ends_c2.min() < -0.1 or hematoxylin_c[0] - eosin_c[0] < _APART:
        return HEMATOXYLIN, EOSIN
    return _vector(hematoxylin_c), _vector(eosin_c)


def _vector(vector_c: NDArray[np.floating]) -> Vector:
    red, green, blue = vector_c.tolist()
    return red, green, blue


def _counterstain(look: Look, he: _HE, inside_hw: Map) -> Map:
    """Return hematoxylin, with the chromatin of the H&E in nuclei and paler elsewhere."""
    within_hw = (1 - look.flatness) * he.hematoxylin_hw + look.flatness * he.tissue_hw
    return look.counterstain * (look.pallor * he.hematoxylin_hw * (1 - inside_hw) + within_hw * inside_hw)


def _amounts(
    look: Look, inst_hw: NDArray[np.int32], type_hw: NDArray[np.int32] | None, mpp: float, rng: np.random.Generator
) -> Map:
    """Return the DAB of each cell by its label; 0 = negative."""
    count = int(inst_hw.max()) + 1
    at_n = np.zeros(count, np.intp)  # a pixel of each
    inside_m = np.flatnonzero(inst_hw > 0)
    at_n[inst_hw.ravel()[inside_m]] = inside_m
    patch_hw = _field(inst_hw.shape, _PATCH / mpp, rng)
    score_n = rng.standard_normal(count, np.float32) + look.clustering * patch_hw.ravel()[at_n]
    share_n: Any = look.positive
    if type_hw is not None and look.by_type:
        types = int(type_hw.max()) + 1
        share_of = look.positive * np.where(rng.random(types) < 0.5, 1, rng.uniform(0, _SHARE, types))
        share_n = share_of[type_hw.ravel()[at_n]]
    positive_n = ndtr(score_n / np.hypot(1, look.clustering)) < share_n
    amount_n = look.strength * np.exp(look.spread * rng.standard_normal(count, np.float32))
    positive_n[0] = False
    return (positive_n * amount_n).astype(np.float32)


def _in_nuclei(look: Look, amount_n: Map, inst_hw: NDArray[np.int32], edge: float, he: _HE, mpp: float) -> Map:
    """Return the DAB of a nuclear marker, which leaks a little into the cytoplasm."""
    dab_hw: Map = cv2.GaussianBlur(amount_n[inst_hw], (0, 0), edge)
    return dab_hw * (1 - look.texture + look.texture * he.hematoxylin_hw) + look.leak * _halo(dab_hw, _HALO / mpp)


def _on_cells(
    look: Look, amount_n: Map, inst_hw: NDArray[np.int32], inside_hw: Map, he: _HE, mpp: float, rng: np.random.Generator
) -> Map:
    """Return the DAB of a marker of membranes or of the cytoplasm."""
    step = max(1, round(_COARSE / mpp))
    coarse_mpp = step * mpp
    cell_hw, distance_hw = _cells(inst_hw[::step, ::step], look.reach, coarse_mpp, rng)
    amount_hw = amount_n[cell_hw]
    share, covered = (1.0, _COVERED) if look.site == "cytoplasm" else (look.leak, 1.0)
    side = 2 * round(_FADE / coarse_mpp) + 1
    dab_hw = _enlarged(cv2.blur(amount_hw, (side, side)), inst_hw.shape)  # fades at the outline of a cell
    dab_hw *= (0.5 + 0.5 * he.eosin_hw) * (share * (1 - covered * inside_hw))
    if look.site == "membrane":
        side = 2 * int(np.ceil(look.width / coarse_mpp)) + 1
        either_hw = _enlarged(cv2.dilate(amount_hw, np.ones((side, side), np.uint8)), inst_hw.shape)
        away_hw = _enlarged(distance_hw, inst_hw.shape) * np.float32(coarse_mpp / look.width)
        kept_hw = 2 * look.completeness - 0.5 + 0.6 * _field(inst_hw.shape, _FRAGMENT / mpp, rng)
        dab_hw += either_hw * np.clip(kept_hw, 0, 1) * cv2.exp(-away_hw * away_hw)
    return dab_hw


def _halo(dab_hw: Map, sigma: float) -> Map:
    """Return a blurred map; a wide blur is done on a coarser grid."""
    step = max(1, int(sigma))
    size = tuple(max(1, side // step) for side in dab_hw.shape[::-1])
    coarse_hw = cv2.resize(dab_hw, size, interpolation=cv2.INTER_AREA)
    return _enlarged(cv2.GaussianBlur(coarse_hw, (0, 0), sigma / step), dab_hw.shape)


def _enlarged(coarse_hw: Map, shape: tuple[int, ...]) -> Map:
    return cv2.resize(coarse_hw, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _cells(
    inst_hw: NDArray[np.int32], reach: float, mpp: float, rng: np.random.Generator
) -> tuple[NDArray[np.int32], Map]:
    """Return the label of the cell at each pixel, and the distance in px from the nearest border of a cell.

    A cell is what is nearest to its nucleus, up to about `reach` um away; 0 = no cell.
    """
    outside = (inst_hw == 0).astype(np.uint8)
    if outside.all():  # of a map of the coarser grid, which may have missed a tiny nucleus
        return np.zeros(inst_hw.shape, np.int32), np.full(inst_hw.shape, _FAR, np.float32)
    outward_hw, nearest_hw = cv2.distanceTransformWithLabels(
        outside, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    inside_m = np.flatnonzero(outside == 0)
    label_n = np.zeros(len(inside_m) + 1, np.int32)
    label_n[nearest_hw.ravel()[inside_m]] = inst_hw.ravel()[inside_m]  # OpenCV numbers the pixels of nuclei
    side = 2 * round(_CROWD / mpp) + 1
    crowd_hw = np.clip(cv2.blur(1 - outside.astype(np.float32), (side, side)) * 5 - 0.5, 0, 1)
    # Isolated cells are small; in a crowd, cells reach each other.
    limit_hw = reach / mpp * (0.4 + 0.6 * crowd_hw) * (1 + 0.3 * _field(inst_hw.shape, 2 * reach / mpp, rng))
    cell_hw = label_n[nearest_hw] * (outward_hw < limit_hw)
    free = np.ones(cell_hw.shape, np.uint8)
    free[:, 1:] &= cell_hw[:, 1:] == cell_hw[:, :-1]
    free[1:] &= cell_hw[1:] == cell_hw[:-1]
    if free.all():
        return cell_hw, np.full(inst_hw.shape, _FAR, np.float32)
    return cell_hw, cv2.blur(cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_3), (3, 3))


def _scanned(look: Look, od_hws: Map, noise_m: Map, mpp: float) -> NDArray[np.uint8]:
    """Return the picture of hematoxylin, DAB, tint and scatter by a scanner."""
    hematoxylin_c, dab_c = np.asarray(look.hematoxylin), np.asarray(look.dab)
    tint_c = (1 - look.warmth) * hematoxylin_c + look.warmth * dab_c
    mix_cs = np.zeros((4, 5))  # OpenCV is faster with a fourth channel; the last column is the light without tissue
    mix_cs[:3, :4] = -np.log(10) * np.column_stack([hematoxylin_c, dab_c, tint_c, np.full(3, 3**-0.5)])
    mix_cs[:3, 4] = np.log(255 * np.asarray(look.glass))
    light_hw4 = cv2.exp(cv2.transform(od_hws, mix_cs))
    # Because of stray light no scan is black.
    direct, stray = 1 / (1 + look.glare), 255 * look.glare / (1 + look.glare) * float(np.mean(look.glass))
    image: Any = cv2.cvtColor(cv2.convertScaleAbs(light_hw4, alpha=direct, beta=stray), cv2.COLOR_RGBA2RGB)
    if look.blur:
        image = cv2.GaussianBlur(image, (0, 0), look.blur / mpp)
    if look.sharpening:
        side = 2 * round(_UNSHARP / mpp) + 1
        halo = cv2.blur(image, (side, side))
        image = cv2.addWeighted(image, 1 + look.sharpening, halo, -look.sharpening, 0)
    if look.noise:
        size = image.shape[0] * image.shape[1]
        shifted = [noise_m[k : k + size].reshape(image.shape[:2]) for k in (0, _SHIFT, 2 * _SHIFT)]
        image = cv2.add(image, np.float32(look.noise) * cv2.merge(shifted), dtype=cv2.CV_8U)
    if look.jpeg:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, file = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, look.jpeg])
        image = cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]
    return image
