import numpy as np
import pytest
import shapely
from scipy import ndimage

from ihc2he.nuclei.instances import centroids, foreground
from ihc2he.nuclei.outlines import outlines
from ihc2he.nuclei.raster import fill

CELL = 12  # px, the room of a blob


def blobs(share, smooth, seed=0, side=600):
    """Return a map of random blobs, one to a cell, which touch where cells do: spurs, bridges, holes, pieces."""
    noise = np.random.default_rng(seed).random((side, side))
    noise = ndimage.gaussian_filter(noise, smooth)
    places = np.arange(side) // CELL
    cells = 1 + places[:, None] * (side // CELL) + places
    return np.where(noise < np.quantile(noise, share), cells * 3, 0)


def geometry(polygons):
    parts = [shapely.Polygon(outer, holes) for outer, *holes in polygons]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def filled(found, shape):
    """Return the map that outlines enclose, with positions from 1 in place of ids."""
    rings = np.split(found.corners_e2, found.starts_r[1:-1])
    polygon_r = np.cumsum(~found.is_hole_r) - 1
    return fill(shape, rings, polygon_r, found.nucleus_r[~found.is_hole_r] + 1)


@pytest.mark.parametrize(("share", "smooth"), [(0.2, 0), (0.5, 0), (0.7, 0), (0.5, 0.6), (0.8, 0.6), (0.5, 1.5)])
def test_outlines_of_random_blobs_are_valid_and_enclose_their_pixels(share, smooth):
    inst_hw = blobs(share, smooth)
    found = outlines(inst_hw)
    ids_n, areas_n = np.unique(inst_hw[inst_hw > 0], return_counts=True)
    assert len(ids_n) > 1000
    assert np.array_equal(found.ids_n, ids_n)
    shapes = [geometry(found.polygons(i)) for i in range(len(ids_n))]
    assert shapely.is_valid(shapes).all()
    assert np.array_equal(shapely.area(shapes), areas_n)
    assert np.array_equal(shapely.bounds(shapes), found.boxes())
    assert np.array_equal(filled(found, inst_hw.shape), np.searchsorted(np.append(0, ids_n), inst_hw))
    pieces = [ndimage.label(inst_hw == number)[1] for number in ids_n[:50]]
    assert [len(found.polygons(i)) for i in range(50)] == pieces
    areas, means = found.moments()
    assert np.array_equal(areas, areas_n)
    assert np.array_equal(means, centroids(inst_hw))


def test_corners_alone_are_kept_and_outer_rings_turn_the_other_way_than_holes():
    found = outlines(blobs(0.6, 0.5))
    for number in range(200):
        for outer, *holes in found.polygons(number):
            for ring, sign in ((outer, 1), *((hole, -1) for hole in holes)):
                sides = np.roll(ring, -1, 0) - ring
                assert ((sides == 0).sum(1) == 1).all()
                assert ((sides[:, 0] == 0) != (np.roll(sides[:, 0], 1) == 0)).all()  # no corner on a straight line
                assert np.sign(shapely.LinearRing(ring).is_ccw * 2 - 1) == sign


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["#.", ".#"], [[4], [4]]),  # a diagonal neck: two polygons
        (["###", "#.#", "##."], [[4, 6]]),  # a gap that is open at a corner only
        (["####", "#.##", "##.#", "####"], [[4, 4, 4]]),  # two gaps that touch at a corner are two holes
        (["#####", "#...#", "#.#.#", "#...#", "#####"], [[4, 4], [4]]),  # an island in a hole
        (["##.##", "##.##"], [[4], [4]]),
        (["#####", "#.#.#", "#####", "....."], [[4, 4, 4]]),
    ],
)
def test_polygons_of_small_shapes_have_the_expected_rings(rows, expected):
    found = outlines(np.array([[int(pixel == "#") for pixel in row] for row in rows])).polygons(0)
    assert sorted(sorted(len(ring) for ring in polygon) for polygon in found) == sorted(map(sorted, expected))
    assert geometry(found).is_valid


def test_a_gap_that_is_open_at_a_corner_is_a_hole_that_touches_the_outline():
    (polygon,) = outlines(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]])).polygons(0)
    outer, hole = polygon
    assert sorted(map(tuple, hole.tolist())) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert sorted(map(tuple, outer.tolist())) == [(0, 0), (0, 3), (2, 2), (2, 3), (3, 0), (3, 2)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_a_whole_tile_spans_it_and_an_empty_one_has_nothing(dtype):
    full = outlines(np.ones((3, 5), dtype))
    assert [[ring.tolist() for ring in polygon] for polygon in full.polygons(0)] == [[[[0, 0], [5, 0], [5, 3], [0, 3]]]]
    for shape in ((3, 5), (0, 0), (1, 0)):
        none = outlines(np.zeros(shape, dtype))
        assert (len(none.ids_n), none.boxes().shape, none.corners_e2.shape) == (0, (0, 4), (0, 2))
        assert [part.shape for part in none.moments()] == [(0,), (0, 2)]


def test_holes_belong_to_the_piece_that_has_them():
    inst_hw = np.ones((6, 30), int)
    inst_hw[2, [3, 13, 23]] = 0  # a hole in each of three pieces
    inst_hw[:, [9, 19]] = 2  # between them another nucleus
    found = outlines(inst_hw)
    assert [len(polygon) for polygon in found.polygons(0)] == [2, 2, 2]
    assert geometry(found.polygons(0)).is_valid
    assert [len(polygon) for polygon in found.polygons(1)] == [1, 1]


@pytest.mark.parametrize(("inst_hw", "message"), [(np.ones((2, 2)), "float64"), (np.array([[-1]]), "found -1")])
def test_what_is_no_map_is_refused(inst_hw, message):
    with pytest.raises(ValueError, match=message):
        outlines(inst_hw)
    assert foreground(np.ones((1, 1), int)).ids_n.tolist() == [1]
