"""Simulated slides: tissue of any size on glass, drawn block by block, with all of its nuclei.

Everything that extends over several blocks is a function of the position, or is sown once, by the block that owns it;
so blocks fit together, and cost and files grow with the area, memory with the width of the slide.

Shape suffixes: h, w = height, width; c = colour (3); n = nuclei.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from ihc2he.errors import ConfigError, DataError, did_you_mean
from ihc2he.files import complete
from ihc2he.images.pyramid import write_pyramid
from ihc2he.simulate.cells import NUCLEUS, Nuclei, sow
from ihc2he.simulate.geometry import THREAD, Plan
from ihc2he.simulate.lattice import Frame
from ihc2he.simulate.optics import light
from ihc2he.simulate.scene import TEXTURES, WAVES, compose, sow_nucleoli, sow_red_cells
from ihc2he.simulate.specimen import GLASS, Specimen, draw_specimen, fields_of, line, outline, plan_of
from ihc2he.simulate.stains import absorb, expression, he_concentrations, ihc_concentrations
from ihc2he.simulate.tissue import TYPES
from ihc2he.simulate.writing import one_thread
from ihc2he.stain.noise import Map

STAINS = ("ihc", "he")
COLUMNS = ("id", "x", "y", "area_um2", "type", "positive")
_MARGIN = 24.0  # um around a block, beyond which hardly anything changes what is in it
_NEAR = 20.0  # um; nuclei of other blocks so far away have to be known
_BLOCK, _NOISE = (1 << 34), (1 << 35)  # seeds of what is drawn for a block, beside those of cases and slides


class Cells(NamedTuple):
    """What a block owns; positions in px of the slide."""

    nuclei: Nuclei
    red: Nuclei
    nucleoli: Nuclei


class _Job(NamedTuple):
    slide: Specimen
    row: int
    column: int
    own: int  # where the block's own nuclei begin among those it sees
    owned: int  # how many they are
    seen: Cells


class _Drawn(NamedTuple):
    image: NDArray[np.uint8]
    area_n: NDArray[np.float64]  # um2, of the block's own nuclei


def write_slide(
    out: Path | str,
    size: int = 20_000,
    stain: str = "ihc",
    mpp: float = 0.25,
    seed: int = 0,
    *,
    workers: int = 1,
) -> Path:
    """Return `out` after writing a slide and, beside it, the table of its nuclei.

    Two pieces of tissue with ragged outlines on glass; glands, partly of a tumour, and stroma; a nuclear marker whose
    share differs from place to place; tears, a fold, and a line of ink. The slide is a pyramidal OME-TIFF. The table
    ``NAME.nuclei.csv`` has a row for each nucleus that is seen: `COLUMNS`, with the centre in px at full resolution
    (the centre of the first pixel is 0, 0), the visible area, the name of the type, and 1 for nuclei with the marker.

    Args:
        out: the file, such as ``slide.ome.tif``.
        size: side of the slide in px.
        stain: `ihc` or `he`; both show the same cells.
        mpp: um/px.
        seed: the same seed gives the same slide.
        workers: number of processes; does not change the slide.

    Raises:
        ConfigError: for a value that makes no sense.
        DataError: the file exists.
    """
    out = Path(out)
    if stain not in STAINS:
        msg = f"stain={stain} is not a stain of the simulation; expected ihc or he.{did_you_mean(stain, STAINS)}"
        raise ConfigError(msg)
    for name, value, least, most in (("size", size, 64, 2**20), ("mpp", mpp, 0.1, 2), ("seed", seed, 0, 2**31)):
        if not least <= value <= most:
            msg = f"{name}={value}: expected {least:g} to {most:g} for a simulated slide."
            raise ConfigError(msg)
    if out.suffix.lower() not in (".tif", ".tiff"):
        msg = f"out={out}: a slide is an OME-TIFF; expected a name such as slide.ome.tif."
        raise ConfigError(msg)
    if out.exists():
        msg = f"{out} exists; it may be a real slide. Delete it or choose another out=."
        raise DataError(msg)
    slide = draw_specimen(size, stain, mpp, seed)
    table = out.with_name(out.name.removesuffix(out.suffix).removesuffix(".ome") + ".nuclei.csv")
    with (
        complete(table) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
        ExitStack() as stack,
    ):
        draw: Callable[..., Iterator[_Drawn]] = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread)
            stack.callback(pool.shutdown, cancel_futures=True)
            draw = pool.map
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(COLUMNS)
        write_pyramid(out, (size, size), mpp, _strips(slide, draw, rows))
    return out


def _strips(slide: Specimen, draw: Callable[..., Iterator[_Drawn]], table: Any) -> Iterator[NDArray[np.uint8]]:
    """Yield the slide from top to bottom, and write the rows of its nuclei."""
    n, number = slide.blocks, 0
    progress = iter(track(range(n * n), "slide"))
    empty = [_nothing()] * n
    above, row = empty, _sow_row(slide, 0, empty)
    below = _sow_row(slide, 1, row)
    for i in range(n):
        drawn = draw(draw_block, _jobs(slide, i, (above, row, below)))
        following = _sow_row(slide, i + 2, below)  # while other processes draw
        parts = []
        for cells, part in zip(row, drawn, strict=True):
            parts.append(part.image)
            number = _write_rows(table, slide, cells.nuclei, part.area_n, number)
            next(progress)
        yield np.concatenate(parts, axis=1)
        above, row, below = row, below, following
    next(progress, None)


def _write_rows(table: Any, slide: Specimen, nuclei: Nuclei, area_n: NDArray[np.float64], number: int) -> int:
    """Write those nuclei that are seen, and return the number of the last."""
    positive_n = expression(nuclei, slide.case.ihc, slide.case.marker) > 0
    for nucleus, area, positive in zip(nuclei, area_n, positive_n, strict=True):
        if area:
            number += 1
            x, y, name = nucleus["x"], nucleus["y"], TYPES[nucleus["type"] - 1]
            table.writerow([number, f"{x:.2f}", f"{y:.2f}", f"{area:.2f}", name, int(positive)])
    return number


def _frame(slide: Specimen, row: int, column: int, step: int) -> tuple[Frame, int]:
    """Return the positions of a block with its margin, `step` px apart, and how many of them are margin."""
    margin = round(_MARGIN / slide.mpp / step)
    centre = (step - 1) / 2  # of the first `step` pixels
    top, left = (k * slide.side - margin * step + centre for k in (row, column))
    length = slide.side // step + 2 * margin
    return Frame(top, left, (length, length), step), margin


# ------------------------------------------------------------------ cells


def _nothing() -> Cells:
    return Cells(*(np.zeros(0, NUCLEUS) for _ in range(3)))


def _sow_row(slide: Specimen, row: int, above: list[Cells]) -> list[Cells]:
    """Return what the blocks of a row own, given the row above; nothing below the slide."""
    if row >= slide.blocks:
        return [_nothing()] * slide.blocks
    sown: list[Cells] = []
    for column in range(slide.blocks):
        known = [*above[max(column - 1, 0) : column + 2], *sown[-1:]]
        sown.append(_sow_block(slide, row, column, np.concatenate([cells.nuclei for cells in known])))
    return sown


def _sow_block(slide: Specimen, row: int, column: int, known: Nuclei) -> Cells:
    """Return what a block owns.

    Args:
        slide: the slide.
        row: of the block.
        column: likewise.
        known: nuclei of blocks around it that have been sown.
    """
    frame, margin = _frame(slide, row, column, slide.step)
    if outline(slide, frame).min() > GLASS:
        return _nothing()
    fields = fields_of(slide, frame)
    plan = _cropped(plan_of(slide, frame, fields, np.zeros(frame.shape, np.float32)), margin)
    inner = np.s_[margin:-margin, margin:-margin]
    malignant_hw = slide.noise(frame, "tumour", 600.0)[inner] > 0
    hot_hw = slide.noise(frame, "hot", 350.0)[inner]
    corner_y, corner_x = frame.y_n[margin], frame.x_n[margin]
    kept = _near(slide, row, column, known)
    kept["x"], kept["y"] = (kept["x"] - corner_x) / frame.step, (kept["y"] - corner_y) / frame.step
    rng = np.random.default_rng([slide.seed, _BLOCK, row, column])
    tissue = slide.case.tissue
    nuclei = sow(plan, tissue, malignant_hw, rng, kept, tissue.spacing)
    last = len(hot_hw) - 1
    nuclei = nuclei[(np.minimum(nuclei["x"], nuclei["y"]) >= 0) & (np.maximum(nuclei["x"], nuclei["y"]) <= last)]
    nuclei["chance"] /= np.exp(hot_hw[nuclei["y"].astype(int), nuclei["x"].astype(int)] - 0.5)
    red = sow_red_cells(plan, rng)
    for cells in (nuclei, red):
        cells["x"], cells["y"] = corner_x + frame.step * cells["x"], corner_y + frame.step * cells["y"]
    nuclei = nuclei[(nuclei["x"] < slide.size - 0.5) & (nuclei["y"] < slide.size - 0.5)]
    return Cells(nuclei, red, sow_nucleoli(nuclei, tissue, slide.mpp, rng))


def _cropped(plan: Plan, margin: int) -> Plan:
    inner = np.s_[margin:-margin, margin:-margin]
    maps = {entry.name: getattr(plan, entry.name)[inner] for entry in fields(plan) if entry.name != "mpp"}
    return replace(plan, **maps)


def _near(slide: Specimen, row: int, column: int, cells: Nuclei) -> Nuclei:
    """Return those cells that reach into a block."""
    near = _NEAR / slide.mpp
    top, left = row * slide.side - near, column * slide.side - near
    length = slide.side + 2 * near
    inside_n = (cells["x"] > left) & (cells["x"] < left + length) & (cells["y"] > top) & (cells["y"] < top + length)
    return cells[inside_n]


def _jobs(slide: Specimen, row: int, rows: tuple[list[Cells], list[Cells], list[Cells]]) -> Iterator[_Job]:
    """Yield what is needed to draw each block of a row; the order of nuclei is the same for all blocks."""
    for column in range(slide.blocks):
        around = [cells for line in rows for cells in line[max(column - 1, 0) : column + 2]]
        own = next(k for k, cells in enumerate(around) if cells is rows[1][column])
        near = [Cells(*(_near(slide, row, column, each) for each in cells)) for cells in around]
        near[own] = around[own]
        before = sum(len(cells.nuclei) for cells in near[:own])
        seen = Cells(*(np.concatenate(each) for each in zip(*near, strict=True)))
        yield _Job(slide, row, column, before, len(around[own].nuclei), seen)


# ------------------------------------------------------------------ drawing


def draw_block(job: _Job) -> _Drawn:
    """Return the pixels of a block, as far as they are on the slide, and the areas of the nuclei that it owns."""
    slide = job.slide
    frame, margin = _frame(slide, job.row, job.column, 1)
    light_hwc, area_n = light_of(slide, frame, job.seen)
    inner = np.s_[margin : margin + slide.side, margin : margin + slide.side]
    scanner = slide.case.he_scanner if slide.stain == "he" else slide.case.ihc_scanner
    rng = np.random.default_rng([slide.seed, _NOISE, STAINS.index(slide.stain), job.row, job.column])
    light_hwc = light_hwc[inner] + np.float32(scanner.noise) * rng.standard_normal(
        (slide.side, slide.side, 3), np.float32
    )
    height, width = (min(slide.side, slide.size - k * slide.side) for k in (job.row, job.column))
    image = np.clip(np.round(light_hwc[:height, :width]), 0, 255).astype(np.uint8)
    return _Drawn(image, area_n[job.own : job.own + job.owned])


def light_of(slide: Specimen, frame: Frame, seen: Cells) -> tuple[Map, NDArray[np.float64]]:
    """Return the light through a part of a slide, HxWx3, 0 to 255, and the visible area of nuclei in it, um2.

    Args:
        slide: the slide.
        frame: the part, at full resolution.
        seen: all cells in it.
    """
    case = slide.case
    od_hwc: Map = np.zeros((*frame.shape, 3), np.float32)
    area_n: Map = np.zeros(len(seen.nuclei))
    if len(seen.nuclei) or outline(slide, frame).min() <= GLASS:
        plan = plan_of(
            slide, frame, fields_of(slide, frame), slide.noise(frame, "thread", max(THREAD, 0.6 * slide.mpp))
        )
        textures = {name: slide.noise(frame, name, scale) for name, scale in (WAVES | TEXTURES).items()}
        nuclei, red, nucleoli = (_moved(cells, frame) for cells in seen)
        section = compose(case.tissue, plan, nuclei, red, nucleoli, textures, margin=0)
        area_n = np.bincount(section.top_hw.ravel(), minlength=len(area_n) + 1)[1:] * slide.mpp**2
        if slide.stain == "he":
            od_hwc = absorb(he_concentrations(section, case.he), case.he.vectors)
        else:
            od_hwc = absorb(ihc_concentrations(section, case.ihc, case.marker), case.ihc.vectors)
    od_hwc = od_hwc * (1 + 0.8 * line(slide, frame, "fold")[..., None])
    od_hwc = od_hwc + line(slide, frame, "ink")[..., None] * np.asarray(slide.colour, np.float32)
    return light(od_hwc, slide.mpp, case.he_scanner if slide.stain == "he" else case.ihc_scanner), area_n


def _moved(cells: Nuclei, frame: Frame) -> Nuclei:
    """Return cells with positions in px of a part."""
    cells = cells.copy()
    cells["x"] -= frame.left
    cells["y"] -= frame.top
    return cells
