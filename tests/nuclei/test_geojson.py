import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
from scipy import ndimage

from ihc2he.errors import DataError
from ihc2he.nuclei.geojson import read_geojson, write_geojson
from ihc2he.nuclei.table import nuclei_table

CLASSES = ["epithelium", "stroma"]


@pytest.mark.parametrize("name", ["nuclei.geojson", "nuclei.geojson.gz"])
def test_what_is_written_is_read_again(ellipses, tmp_path, name):
    blocks = ellipses(96, 6, 1)
    inst_hw = np.zeros((97, 110), np.int32)
    inst_hw[:96, :96] = np.where(blocks == 3, 0, blocks)  # a gap in the ids, touching nuclei, borders
    inst_hw[90, 105], inst_hw[50, 100:105], inst_hw[20:30, 107] = 30, 31, 40  # a point and lines
    outlines = nuclei_table(inst_hw, mpp=0.25)
    types_n = np.arange(len(outlines)) % 3
    table = nuclei_table(inst_hw, types_n, np.full(len(types_n), 0.75), mpp=0.25)
    path = tmp_path / name
    write_geojson(path, table, CLASSES)
    found = read_geojson(path, inst_hw.shape, CLASSES)
    expected = np.searchsorted(np.append(0, table.ids_n), inst_hw)
    assert np.array_equal(found.inst_hw, expected)
    assert found.types_n.tolist() == types_n.tolist()
    assert found.shares_n.tolist() == [0.75] * len(types_n)


def test_a_feature_is_what_qupath_expects(tmp_path):
    inst_hw = np.zeros((10, 10), np.int32)
    inst_hw[2:5, 3:8] = 12
    image = np.full((10, 10, 3), 255, np.uint8)
    write_geojson(tmp_path / "a.geojson", nuclei_table(inst_hw, np.array([2]), mpp=0.5, image=image), CLASSES)
    content = json.loads((tmp_path / "a.geojson").read_text())
    (feature,) = content["features"]
    assert content["type"] == "FeatureCollection"
    # QuPath counts from the corner of the first pixel.
    ring = feature["geometry"]["coordinates"][0]
    assert feature["geometry"]["type"] == "Polygon"
    assert ring[0] == ring[-1]
    assert {tuple(point) for point in ring} == {(3, 2), (3, 5), (8, 5), (8, 2)}
    properties = feature["properties"]
    assert (properties["objectType"], properties["name"]) == ("detection", "12")
    assert properties["classification"] == {"name": "stroma", "color": [0, 158, 115]}
    assert properties["measurements"]["area_um2"] == 3.75
    assert properties["measurements"]["hematoxylin_od"] == 0


def test_an_edited_file_of_an_older_qupath_is_read(tmp_path):
    square = [[2.5, 2.5], [6.5, 2.5], [6.5, 6.5], [2.5, 6.5], [2.5, 2.5]]
    far = [[[x + 10, y] for x, y in square]]
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {"objectType": "annotation"}},
        {
            "geometry": {"type": "MultiPolygon", "coordinates": [[square], far]},
            "properties": {
                "classification": {"name": "epithelium", "colorRGB": -1},
                "measurements": [{"name": "type_share", "value": 0.5}],
            },
        },
        {"geometry": {"type": "Polygon", "coordinates": [[[90, 90], [95, 90], [95, 95], [90, 90]]]}},
    ]
    path = tmp_path / "edited.geojson"
    path.write_text(json.dumps(features))
    inst_hw, types_n, shares_n = read_geojson(path, (12, 20), CLASSES)
    assert (types_n.tolist(), shares_n.tolist()) == ([1], [0.5])  # one is covered, one outside
    assert np.bincount(inst_hw.ravel()).tolist() == [190, 50]


def test_every_feature_is_valid_and_as_large_as_its_measured_area(tmp_path):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((300, 300)), 1.5)
    cells = 1 + np.arange(300)[:, None] // 15 * 20 + np.arange(300) // 15
    inst_hw = np.where(noise < 0.52, cells, 0)  # 400 nuclei, which touch one another
    write_geojson(tmp_path / "a.geojson", nuclei_table(inst_hw, mpp=0.25), CLASSES)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    areas = [feature["properties"]["measurements"]["area_um2"] for feature in features]
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes) * 0.25**2 == pytest.approx(areas, abs=1e-4)
    assert {feature["geometry"]["type"] for feature in features} == {"MultiPolygon", "Polygon"}
    assert np.array_equal(read_geojson(tmp_path / "a.geojson", inst_hw.shape, CLASSES).inst_hw, inst_hw)


def test_a_measurement_that_is_not_finite_is_left_out(tmp_path):
    table = replace(nuclei_table(np.array([[1, 2]]), mpp=1), extra={"score": np.array([np.nan, 0.5])})
    write_geojson(tmp_path / "a.geojson", table, CLASSES)
    assert "NaN" not in (tmp_path / "a.geojson").read_text()
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [feature["properties"]["measurements"].get("score") for feature in features] == [None, 0.5]


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def read_features(tmp_path, content, shape=(12, 20)):
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    return read_geojson(tmp_path / "a.geojson", shape, CLASSES)


def test_holes_and_further_polygons_are_read(tmp_path):
    coordinates = [[square(0, 0, 6), square(1, 1, 2)], [square(10, 0, 3)]]
    found = read_features(tmp_path, [{"geometry": {"type": "MultiPolygon", "coordinates": coordinates}}])
    expected = np.zeros((12, 20), int)
    expected[:6, :6], expected[1:3, 1:3], expected[:3, 10:13] = 1, 0, 1
    assert np.array_equal(found.inst_hw, expected)


@pytest.mark.parametrize(
    ("classification", "kind"),
    [
        (None, 0), ({}, 0), ("stroma", 2), ({"name": "stroma", "color": [1, 2, 3]}, 2), ({"name": "unknown"}, 0),
        ({"names": ["epithelium", "Positive"], "color": [1, 2, 3]}, 1), ({"name": "epithelium: 3+"}, 1),
        ({"name": "Negative", "parentClass": {"name": "stroma"}, "colorRGB": -1}, 2), ({"names": ["unknown", "3+"]}, 0),
    ],
)  # fmt: skip
def test_the_classes_of_all_versions_of_qupath_are_understood(classification, kind, tmp_path):
    feature = {
        "type": "Feature", "id": "6c2e8a0c-0a38-4e0f-8f2d-5e7a3e7b5a11",
        "geometry": {"type": "Polygon", "coordinates": [[[*corner, 0] for corner in square(1, 1, 3)]]},
        "properties": {"objectType": "annotation", "classification": classification},
    }  # fmt: skip
    for content in (feature, [feature], {"type": "FeatureCollection", "features": [feature]}):
        found = read_features(tmp_path, content)
        assert (found.types_n.tolist(), (found.inst_hw > 0).sum()) == ([kind], 9)


def test_of_a_cell_the_nucleus_is_read(tmp_path):
    cell, nucleus = ({"type": "Polygon", "coordinates": [square(*where)]} for where in ((0, 0, 9), (2, 2, 3)))
    found = read_features(tmp_path, [{"geometry": cell, "nucleusGeometry": nucleus, "properties": None}])
    assert found.inst_hw.sum() == 9


def test_no_nuclei_go_there_and_back(tmp_path):
    write_geojson(tmp_path / "a.geojson", nuclei_table(np.zeros((5, 4), int), mpp=1), CLASSES)
    found = read_geojson(tmp_path / "a.geojson", (5, 4), CLASSES)
    assert not found.inst_hw.any()
    assert len(found.types_n) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable GeoJSON file"),
        ('{"type": "Topology"}', "expected a FeatureCollection or a list of features"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]', "feature 0 is a Point; nuclei are Polygons"),
        ('[{"geometry": null}]', "feature 0 has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[["a", 2]]]}}]', "feature 0 has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[NaN, 2]]]}}]', "feature 0 has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1], [2]]]}}]', "feature 0 has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[]]}}]', "feature 0 has no geometry"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [1, 2]}}]', "feature 0 has no geometry"),
        ("[7]", "feature 0 has no geometry"),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]},'
            ' "properties": {"classification": {"names": ["stroma", "epithelium"]}}}]',
            "feature 0 is classified as 'stroma: epithelium', which names several of the classes",
        ),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2]]]},'
            ' "properties": {"classification": {"name": "Stroma"}}}]',
            "feature 0 is classified as 'Stroma', which is none of the classes. Did you mean 'stroma'",
        ),
    ],
)
def test_what_cannot_be_read_is_named(content, message, tmp_path):
    path = tmp_path / "bad.geojson"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_geojson(path, (5, 5), CLASSES)
    assert str(path) in str(error.value)


def test_a_compressed_file_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "a.geojson.gz"
    write_geojson(path, nuclei_table(np.eye(9, dtype=int), mpp=1), CLASSES)
    whole = path.read_bytes()
    write_geojson(path, nuclei_table(np.eye(9, dtype=int), mpp=1), CLASSES)
    assert path.read_bytes() == whole
    for broken in (whole[:-9], b"{}"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.geojson\.gz: not a readable GeoJSON file"):
            read_geojson(path, (9, 9), CLASSES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.geojson: not a readable GeoJSON file"):
        read_geojson(tmp_path / "none.geojson", (5, 5), CLASSES)
