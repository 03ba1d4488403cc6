"""Regions drawn in QuPath, with holes, in several parts, and to be left out."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ihc2he.errors import DataError
from ihc2he.images.areas import Area
from ihc2he.images.regions import Region, Regions, read_regions
from ihc2he.images.tissue import Tissue
from ihc2he.nuclei.geojson import write_area

pytest.importorskip("shapely")


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(polygons, kind="", name="", what="annotation"):
    properties = {"objectType": what}
    properties |= {"classification": {"name": kind, "color": [1, 2, 3]}} if kind else {}
    properties |= {"name": name} if name else {}
    shape = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        shape = {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "Feature", "geometry": shape, "properties": properties}


@pytest.fixture
def read(tmp_path):
    def write_and_read(*features):
        path = tmp_path / "regions.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return read_regions(path)

    return write_and_read


def test_names_classes_holes_and_parts_are_read(read):
    ring = feature([[square(10, 10, 40), square(20, 20, 10)]], "Tumor", "core")
    both = feature([[square(60, 0, 10)], [square(80, 0, 10)]], "Stroma")
    regions = read(ring, both, feature([[square(12, 12, 4)]], "Ignore*"))
    assert [(r.name, r.kind, r.excluded) for r in regions] == [
        ("core", "Tumor", False), ("", "Stroma", False), ("", "Ignore*", True),
    ]  # fmt: skip
    found = pickle.loads(pickle.dumps(Regions(regions)))
    points = np.array([[40, 40], [25, 25], [13, 13], [65, 5], [75, 5], [85, 5], [9.6, 30], [9.4, 30]])
    assert found.index(points).tolist() == [0, -1, -1, 1, -1, 1, 0, -1]
    mask = found.mask((100, 100))
    assert mask.at(points).tolist() == [True, False, False, True, False, True, True, False]
    assert mask.share == pytest.approx(0.18 - 0.0016, abs=0.02)


def test_the_smallest_of_nested_regions_counts(read):
    inner, outer = feature([[square(10, 10, 10)]], name="gland"), feature([[square(0, 0, 90)]], name="tissue")
    for order in ((inner, outer), (outer, inner)):
        found = Regions(read(*order))
        names = [found.included[i].name for i in found.index(np.array([[15, 15], [50, 50]]))]
        assert names == ["gland", "tissue"]


def test_areas_are_of_what_counts_for_a_region(read):
    outer, gland, fold = square(-10, 0, 60), square(10, 10, 20), square(20, 20, 20)
    found = Regions(read(feature([[outer]]), feature([[gland]]), feature([[fold]], "Ignore*")))
    assert found.areas((40, 100)) == pytest.approx([50 * 40 - 400 - 300, 300])
    rows, columns = np.mgrid[:40, :100]
    of_m = found.index(np.stack([columns.ravel(), rows.ravel()], 1))
    assert [(of_m == k).sum() for k in (0, 1)] == [50 * 40 - 400 - 300, 300]


def test_a_file_that_only_excludes_leaves_the_rest_of_the_tissue(read):
    found = Regions(read(feature([[square(0, 0, 50)]], "Artefact*")))
    left = Tissue(np.repeat([[True, False]], 2, 0), (100, 100))
    assert found.mask((100, 100), left).at(np.array([[20, 20], [20, 80], [80, 80]])).tolist() == [False, True, False]
    assert found.mask((100, 100)).at(np.array([[20, 20], [80, 80]])).tolist() == [False, True]


def test_detections_are_counted_and_left_out(read, caplog):
    (region,) = read(feature([[square(0, 0, 9)]]), feature([[square(2, 2, 3)]], what="detection"))
    assert (region.name, region.kind) == ("", "")
    assert "left out 1 detections" in caplog.text


def test_an_outline_that_crosses_itself_is_repaired():
    bow = Region("", "", [[np.array([[0, 0], [20, 20], [20, 0], [0, 20.0]])]])
    assert Regions([bow]).index(np.array([[2.0, 9], [9.5, 2], [17, 9]])).tolist() == [0, -1, 0]


def test_what_is_wrong_is_said(read):
    with pytest.raises(DataError, match=r"regions\.geojson: has no annotation. Draw regions in QuPath"):
        read()
    with pytest.raises(DataError, match="feature 0 has an outline of fewer than 3 corners"):
        read(feature([[[[0, 0], [1, 1]]]]))
    with pytest.raises(DataError, match="feature 0 is a Point; regions are Polygons"):
        read({"geometry": {"type": "Point", "coordinates": [1, 2]}})
    with pytest.raises(DataError, match="r: its regions leave nothing of the image of 50 x 50 px"):
        Regions(read(feature([[square(60, 60, 9)]])), "r").mask((50, 50))


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=30, deadline=None)
def test_a_written_area_is_read_back_to_the_pixel(tmp_path_factory, map_hw):
    if not map_hw.any():
        return
    path = tmp_path_factory.mktemp("area") / "a.geojson"
    shape = (3 * map_hw.shape[0], 3 * map_hw.shape[1])
    area = Area(map_hw, shape)
    write_area(path, area, "Tissue")
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([columns.ravel(), rows.ravel()], 1)
    assert np.array_equal(Regions(read_regions(path)).index(points) >= 0, area.at(points))
