import numpy as np
import pytest
import shapely

from ihc2he.nuclei.raster import fill


@pytest.mark.parametrize("seed", range(30))
def test_pixels_belong_to_the_polygons_that_their_centres_lie_in_or_on(seed):
    """Corners are whole or half numbers, so that many centres lie on sides and corners."""
    rng = np.random.default_rng(seed)
    points = shapely.MultiPoint(rng.integers(-4, 44, (rng.integers(3, 9), 2)) / 2)
    shapes = [shapely.convex_hull(points), shapely.buffer(points, 3.5, quad_segs=1)]
    polygons = [part for shape in shapes for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    rings, polygon_r = [], []
    for i, polygon in enumerate(polygons):
        own = [np.array(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]
        rings += own
        polygon_r += [i] * len(own)
    found = fill((18, 20), rings, polygon_r, range(1, len(polygons) + 1))
    x, y = np.meshgrid(np.arange(20) + 0.5, np.arange(18) + 0.5)
    expected = np.zeros((18, 20))
    for number, polygon in enumerate(polygons, 1):
        near = shapely.distance(polygon, shapely.points(x, y)) < 1e-9
        expected[near] = number
    unsure = np.zeros((18, 20), bool)  # on a slanted side, where rounding decides
    for polygon in polygons:
        unsure |= (shapely.distance(polygon.boundary, shapely.points(x, y)) < 1e-9) & ~_on_straight_side(polygon, x, y)
    assert np.array_equal(found[~unsure], expected[~unsure])


def _on_straight_side(polygon, x, y):
    found = np.zeros(x.shape, bool)
    for ring in (polygon.exterior, *polygon.interiors):
        for (x0, y0), (x1, y1) in zip(ring.coords[:-1], ring.coords[1:], strict=True):
            if x0 == x1 or y0 == y1:
                found |= shapely.distance(shapely.LineString([(x0, y0), (x1, y1)]), shapely.points(x, y)) == 0
    return found


def test_nothing_is_drawn_of_nothing_and_outside():
    assert not fill((3, 4), [], [], []).any()
    far = np.array([[-9, -9], [-2, -9], [-2, -2]])
    assert not fill((3, 4), [far, far + 50], [0, 1], [1, 2]).any()
    assert fill((3, 4), [np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]])], [0], [7]).tolist() == [[7] * 4] * 3
