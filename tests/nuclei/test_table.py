import csv
from dataclasses import replace

import numpy as np
import pytest

from ihc2he.errors import ConfigError
from ihc2he.nuclei.raster import fill
from ihc2he.nuclei.table import IHC_STAINS, joined, nuclei_table, write_table
from ihc2he.stain.deconvolution import DAB, HEMATOXYLIN


def drawn(table, i, shape):
    """Return the mask of the pixels whose centres the outlines of a nucleus enclose."""
    polygons = table.outlines.polygons(i)
    rings = [ring for polygon in polygons for ring in polygon]
    return fill(shape, rings, [k for k, polygon in enumerate(polygons) for _ in polygon], [1] * len(polygons)) > 0


def test_rows_are_those_of_full_masks(ellipses):
    inst_hw = ellipses(128, 15, 2) * 3  # ids with gaps
    table = nuclei_table(inst_hw, mpp=0.25)
    ids = [number for number in np.unique(inst_hw) if number]
    assert table.ids_n.tolist() == ids
    assert len(table) == len(ids)
    for i, number in enumerate(ids):
        mask = inst_hw == number
        rows, columns = np.nonzero(mask)
        assert table.centroids_n2[i] == pytest.approx([columns.mean(), rows.mean()])
        assert table.boxes_n4[i].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert table.areas_n[i] == mask.sum()
        assert np.array_equal(drawn(table, i, mask.shape), mask)


def test_the_outlines_fill_to_all_pieces_of_the_nucleus():
    inst_hw = np.zeros((20, 20), np.int32)
    inst_hw[2:9, 3:11], inst_hw[15:17, 15:17] = 5, 5
    table = nuclei_table(inst_hw, mpp=1)
    assert np.array_equal(drawn(table, 0, inst_hw.shape), inst_hw == 5)
    assert table.areas_n.tolist() == [60]


def test_optical_densities_are_means_over_each_nucleus():
    inst_hw = np.zeros((8, 12), np.int32)
    inst_hw[:, :4], inst_hw[:, 8:] = 1, 2
    blue, brown = (np.array(vector) / np.linalg.norm(vector) for vector in (HEMATOXYLIN, DAB))
    od = np.zeros((8, 12, 3))
    od[:, :4], od[:4, 8:], od[4:, 8:] = 0.4 * blue, 0.2 * brown, 0.6 * brown
    table = nuclei_table(inst_hw, mpp=0.5, image=np.round(255 * 10**-od).astype(np.uint8), stains=IHC_STAINS)
    assert table.stain_od["hematoxylin"] == pytest.approx([0.4, 0], abs=0.01)
    assert table.stain_od["dab"] == pytest.approx([0, 0.4], abs=0.01)


def test_the_file_has_a_row_per_nucleus_in_pixels_and_micrometres(tmp_path):
    inst_hw = np.zeros((8, 8), np.int32)
    inst_hw[2:4, 4:8], inst_hw[7, 0] = 9, 4
    image = np.full((8, 8, 3), 255, np.uint8)
    table = nuclei_table(inst_hw, np.array([0, 2]), np.array([0.5, 0.75]), mpp=0.5, image=image)
    write_table(tmp_path / "nuclei.csv", table, ["epithelium", "stroma"])
    with (tmp_path / "nuclei.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["type"] for row in rows] == ["unknown", "stroma"]
    assert {key: float(value) for key, value in rows[1].items() if key != "type"} == {
        "id": 9, "left_px": 4, "top_px": 2, "right_px": 8, "bottom_px": 4, "x_px": 5.5, "y_px": 2.5, "x_um": 2.75,
        "y_um": 1.25, "area_px2": 8, "area_um2": 2, "type_share": 0.75, "hematoxylin_od": 0, "eosin_od": 0,
    }  # fmt: skip


def test_further_measurements_follow_the_others(tmp_path):
    table = replace(nuclei_table(np.array([[1, 2]]), mpp=1), extra={"positive": np.array([0, 1])})
    write_table(tmp_path / "nuclei.csv", table, [])
    with (tmp_path / "nuclei.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-2:] == ["type_share", "positive"]
    assert [row["positive"] for row in rows] == ["0", "1"]


def test_no_nuclei_give_an_empty_table_with_a_header(tmp_path):
    table = nuclei_table(np.zeros((5, 5), int), mpp=0.25, image=np.zeros((5, 5, 3), np.uint8))
    assert (len(table), table.boxes_n4.shape, len(table.outlines.starts_r)) == (0, (0, 4), 1)
    write_table(tmp_path / "nuclei.csv", table, [])
    assert (tmp_path / "nuclei.csv").read_text().startswith("id,type,left_px")


def test_one_pixel_and_a_whole_tile():
    inst_hw = np.full((6, 9), 7)
    inst_hw[3, 4] = 8
    table = nuclei_table(inst_hw, mpp=0.25)
    assert table.areas_n.tolist() == [53, 1]
    assert table.boxes_n4.tolist() == [[0, 0, 9, 6], [4, 3, 5, 4]]
    assert table.outlines.polygons(1)[0][0].tolist() == [[4, 3], [5, 3], [5, 4], [4, 4]]


def test_more_nuclei_than_16_bits_hold():
    inst_hw = np.arange(1, 260 * 260 + 1).reshape(260, 260) * 1000
    table = nuclei_table(inst_hw, mpp=0.25)
    assert len(table) == 67_600
    assert table.ids_n[-1] == 67_600_000
    assert table.outlines.polygons(67_599)[0][0].tolist() == [[259, 259], [260, 259], [260, 260], [259, 260]]


def test_mistakes_are_named():
    inst_hw = np.array([[1, 2]])
    with pytest.raises(ConfigError, match=r"mpp .* positive, found 0"):
        nuclei_table(inst_hw, mpp=0)
    with pytest.raises(ValueError, match=r"map \(1, 2\) of 2 nuclei does not fit 1 types, 2 shares, image None"):
        nuclei_table(inst_hw, np.array([1]), mpp=1)
    with pytest.raises(ValueError, match=r"image \(2, 2, 3\)"):
        nuclei_table(inst_hw, mpp=1, image=np.zeros((2, 2, 3), np.uint8))


def test_strips_of_a_map_give_the_rows_of_the_whole(ellipses):
    inst_hw = ellipses(160, 25, 4)
    image = np.random.default_rng(0).integers(60, 250, (160, 160, 3), np.uint8)
    whole = nuclei_table(inst_hw, mpp=0.5, image=image)
    ids = np.argsort(np.argsort(whole.boxes_n4[:, 1], kind="stable")) + 1  # from top to bottom
    inst_hw = np.concatenate([[0], ids])[np.searchsorted(whole.ids_n, inst_hw, side="right") * (inst_hw > 0)]
    whole = nuclei_table(inst_hw, mpp=0.5, image=image)
    parts = []
    for first, last in ((1, 9), (10, 10), (11, len(ids))):
        own_hw = np.where((inst_hw >= first) & (inst_hw <= last), inst_hw, 0)
        rows = np.flatnonzero(own_hw.any(1))
        place = slice(rows[0], rows[-1] + 1)
        parts.append(nuclei_table(own_hw[place], mpp=0.5, image=image[place], corner=(0, rows[0])))
    empty = nuclei_table(np.zeros((4, 160), int), mpp=0.5, image=image[:4])
    table = joined([parts[0], empty, *parts[1:]])
    for name in ("ids_n", "centroids_n2", "boxes_n4", "areas_n", "types_n", "shares_n"):
        assert np.array_equal(getattr(table, name), getattr(whole, name)), name
    for name, od_n in whole.stain_od.items():
        assert np.array_equal(table.stain_od[name], od_n)
    for name in ("ids_n", "corners_e2", "starts_r", "nucleus_r", "is_hole_r"):
        assert np.array_equal(getattr(table.outlines, name), getattr(whole.outlines, name)), name
