import json

import numpy as np
import pytest

from ihc2he.errors import DataError
from ihc2he.nuclei.geojson import read_geojson, write_geojson
from ihc2he.nuclei.table import nuclei_table

CLASSES = ["epithelium", "stroma"]


def test_what_is_written_is_read_again(ellipses, tmp_path):
    blocks = ellipses(96, 6, 1)
    inst_hw = np.zeros((97, 110), np.int32)
    inst_hw[:96, :96] = np.where(blocks == 3, 0, blocks)  # a gap in the ids, touching nuclei, borders
    inst_hw[90, 105], inst_hw[50, 100:105], inst_hw[20:30, 107] = 30, 31, 40  # a point and lines
    outlines = nuclei_table(inst_hw, mpp=0.25)
    types_n = np.arange(len(outlines)) % 3
    table = nuclei_table(inst_hw, types_n, np.full(len(types_n), 0.75), mpp=0.25)
    path = tmp_path / "nuclei.geojson"
    write_geojson(path, table, CLASSES)
    found = read_geojson(path, inst_hw.shape, CLASSES)
    expected = np.searchsorted(np.append(0, table.ids_n), inst_hw)
    assert (found.inst_hw != expected).mean() < 2e-3  # pieces cut off by a neighbour have no outline
    simple = np.isin(inst_hw, [30, 31, 40])
    assert np.array_equal(found.inst_hw[simple], expected[simple])
    assert (found.inst_hw[:, 100:] > 0).sum() == simple.sum()
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
    # Half a pixel off: QuPath counts from the corner of the first pixel.
    ring = feature["geometry"]["coordinates"][0]
    assert feature["geometry"]["type"] == "Polygon"
    assert ring[0] == ring[-1]
    assert {tuple(point) for point in ring} == {(3.5, 2.5), (3.5, 4.5), (7.5, 4.5), (7.5, 2.5)}
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.geojson: not a readable GeoJSON file"):
        read_geojson(tmp_path / "none.geojson", (5, 5), CLASSES)
