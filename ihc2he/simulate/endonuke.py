"""Simulated EndoNuke: endometrium with nuclear DAB, keypoints of several annotators, 0.5 and 0.25 um/px."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ihc2he.files import write_text
from ihc2he.images.writing import write_png
from ihc2he.simulate.scene import Section, crop, cut, draw_block, truth
from ihc2he.simulate.tile import draw_case, photograph_he, photograph_ihc, tile_rng, write_truth
from ihc2he.simulate.tissue import CONNECTIVE, DEAD, ENDOMETRIUM, EPITHELIAL, INFLAMMATORY, NEOPLASTIC, Marker
from ihc2he.simulate.writing import open_simulation, run

MPP = 0.5  # of nine tiles in ten; the others have twice the resolution
CASES = 12
MARKER = Marker("nucleus", dab=(0.31, 0.55, 0.78))
SCANNER = {"blur": 0.35, "sharpening": 1.45, "glare": 0.10}  # the scanner of this dataset sharpens strongly
ANNOTATORS = ("ptg1", "ptg2", "ptg3", "stud1", "stud2", "stud3", "stud4")
STUDIES = ("hidden_agreement", "posterior_agreement", "preliminary_agreement")
# EndoNuke's classes are 0 stroma, 1 epithelium, 2 other.
CLASS_OF_TYPE = {NEOPLASTIC: 1, EPITHELIAL: 1, CONNECTIVE: 0, INFLAMMATORY: 0, DEAD: 2}

_BULK_BY_PATHOLOGISTS = 268 / 1740
_AGREEMENT_EVERY = 44  # 40 of 1780 tiles have labels from all seven annotators
_FINE_EVERY = 10  # 174 of 1780 tiles are at 0.25 um/px
_LEAST_VISIBLE = 0.3  # visible share of a nucleus; annotators do not see less


@dataclass(frozen=True)
class Hand:
    """How an annotator works."""

    jitter: float  # um, standard deviation of a click
    miss: float  # probability of missing a clearly visible nucleus
    miss_blurred: float  # the same for a nucleus that is fully out of focus
    invent: float  # false points per nucleus
    confuse: float  # probability of the wrong class

    def annotate(
        self, instances_hw: NDArray[np.int32], nuclei: NDArray[np.void], mpp: float, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return the keypoints of a tile as Nx3 (x, y, class) in pixels."""
        n = len(nuclei)
        visible_n = np.bincount(instances_hw.ravel(), minlength=n + 1)[1:] * mpp**2
        whole_n = np.pi / 4 * nuclei["length"] * nuclei["width"]
        miss_n = self.miss + (self.miss_blurred - self.miss) * nuclei["blur"]
        seen_n = (rng.random(n) >= miss_n) & (visible_n > _LEAST_VISIBLE * whole_n)
        yx_n2 = np.reshape(ndimage.center_of_mass(instances_hw > 0, instances_hw, np.arange(1, n + 1)), (n, 2))
        class_n = np.array([CLASS_OF_TYPE[t] for t in nuclei["type"]], np.int64)
        wrong_n = rng.random(n) < self.confuse
        class_n[wrong_n] = np.where(class_n[wrong_n] == 0, 1, 0)
        xy_n2 = yx_n2[:, ::-1] + rng.normal(0, self.jitter / mpp, (n, 2))
        h, w = instances_hw.shape
        n_invented = rng.poisson(self.invent * n)
        invented_n2 = rng.uniform(0, (w, h), (n_invented, 2))
        xy_n2 = np.concatenate([xy_n2[seen_n], invented_n2])
        class_n = np.concatenate([class_n[seen_n], np.zeros(n_invented, np.int64)])
        xy_n2 = np.clip(np.round(xy_n2), 0, (w - 1, h - 1)).astype(np.int64)
        return np.concatenate([xy_n2, class_n[:, None]], axis=1)


PATHOLOGIST = Hand(jitter=0.5, miss=0.03, miss_blurred=0.35, invent=0.02, confuse=0.02)
STUDENT = Hand(jitter=0.6, miss=0.05, miss_blurred=0.45, invent=0.03, confuse=0.04)


@dataclass(frozen=True)
class _Tile:
    out: Path
    index: int
    size: int
    seed: int

    @property
    def image(self) -> Path:
        return self.out / "dataset" / "images" / f"{self.index}.png"

    @property
    def pixels(self) -> int:
        return 2 * self.size if self.index % _FINE_EVERY == _FINE_EVERY - 1 else self.size

    @property
    def mpp(self) -> float:
        return MPP * self.size / self.pixels

    def readers(self) -> list[tuple[str, str]]:
        """The (split, annotator) pairs that label this tile."""
        if self.index % _AGREEMENT_EVERY == 1:
            study = STUDIES[self.index // _AGREEMENT_EVERY % len(STUDIES)]
            return [(study, name) for name in ANNOTATORS]
        rng = np.random.default_rng([self.seed, self.index, 1])
        names = ANNOTATORS[:3] if rng.random() < _BULK_BY_PATHOLOGISTS else ANNOTATORS[3:]
        return [("bulk", names[rng.integers(len(names))])]


def write_endonuke(out: Path | str, tiles: int, size: int = 200, seed: int = 0, *, workers: int = 1) -> Path:
    """Return `out` after writing tiles in the public layout of EndoNuke, and their truth.

    ``dataset/{images,images_context}/<id>.png``, ``dataset/labels/<split>/<annotator>/<id>.txt``,
    ``dataset/file_lists`` and ``master_ymls``. One tile in ten has half the pixel size, and one in
    44 is labelled by all seven annotators. Under ``truth``: the H&E of the same cells, instances, types and markers.
    If a call is killed, the same call continues it.

    Args:
        out: folder to write to.
        tiles: number of tiles over all splits.
        size: side of a tile at 0.5 um/px, in pixels.
        seed: the same seed gives the same bytes.
        workers: number of processes.

    Raises:
        DataError: if `out` holds something else.
    """
    out = open_simulation(out, "dataset", "endonuke", tiles, size, seed)
    jobs = [_Tile(out, i, size, seed) for i in range(tiles)]
    run(_draw, [job for job in jobs if not job.image.exists()], workers, "EndoNuke")
    _write_lists(out, jobs)
    return out


def _draw(tile: _Tile) -> None:
    case = draw_case(ENDOMETRIUM, MARKER, tile.seed, tile.index % CASES, **SCANNER)
    rng = tile_rng(tile.seed, tile.index)
    block = draw_block(case.tissue, 3 * tile.pixels, tile.mpp, rng)
    around = cut(block, rng)
    inner = np.s_[tile.pixels : -tile.pixels, tile.pixels : -tile.pixels]
    context = photograph_ihc(around, case, rng)
    he = photograph_he(around, case, rng)[inner]
    section = crop(around, tile.pixels)
    _write_labels(tile, section, rng)
    write_truth(tile.out, f"dataset/images/{tile.image.name}", section, case)
    write_png(tile.out / "truth" / "he" / "dataset" / "images" / tile.image.name, he)
    write_png(tile.out / "dataset" / "images_context" / tile.image.name, context)
    write_png(tile.image, context[inner])


def _write_labels(tile: _Tile, section: Section, rng: np.random.Generator) -> None:
    instances_hw, nuclei = truth(section)
    for split, name in tile.readers():
        hand = PATHOLOGIST if name.startswith("ptg") else STUDENT
        points_n3 = hand.annotate(instances_hw, nuclei, tile.mpp, rng)
        lines = "".join(f"{x} {y} {kind}\n" for x, y, kind in points_n3)
        write_text(tile.out / "dataset" / "labels" / split / name / f"{tile.index}.txt", lines)


def _write_lists(out: Path, tiles: list[_Tile]) -> None:
    """List the files of each split and annotator, and group these lists in the master files."""
    lists: dict[tuple[str, str], list[int]] = {}
    for tile in tiles:
        for reader in tile.readers():
            lists.setdefault(reader, []).append(tile.index)
    names: dict[tuple[str, str], tuple[str, str]] = {}
    for (split, name), ids in sorted(lists.items()):
        images, labels = (f"dataset/file_lists/{split}/{name}_{what}.txt" for what in ("images", "labels"))
        names[split, name] = images, labels
        write_text(out / images, "".join(f"dataset/images/{i}.png\n" for i in ids))
        write_text(out / labels, "".join(f"dataset/labels/{split}/{name}/{i}.txt\n" for i in ids))
    groups = {split: [r for r in names if r[0] == split] for split in ("bulk", *STUDIES)}
    groups["agreement"] = [r for r in names if r[0] in STUDIES]
    groups["everything"] = list(names)
    groups["unique"] = groups["bulk"] + [r for r in groups["agreement"] if r[1] == ANNOTATORS[0]]
    for group, readers in groups.items():
        columns = {"images_lists": 0, "labels_lists": 1}
        lines = [f"{key}:" + "".join(f"\n- {names[r][k]}" for r in readers) for key, k in columns.items()]
        text = "\n".join(line if readers else f"{line} []" for line in lines)
        write_text(out / "master_ymls" / f"{group}.yaml", text + "\n")
