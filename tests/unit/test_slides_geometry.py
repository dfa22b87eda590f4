from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box
from skimage.draw import polygon2mask

from trainer.slides.geometry import area_shares, l0_centres, l0_length, polygons_of, rasterise, subdivide


def blob(seed: int, num_points: int, centre: float, radius: float) -> Polygon:
    """A star-shaped polygon: never self-crossing."""
    rng = np.random.default_rng(seed)
    angles = (np.arange(num_points) + rng.uniform(0, 0.9, num_points)) * 2 * np.pi / num_points
    radii = rng.uniform(0.2, 1, num_points) * radius
    return Polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + centre)


@st.composite
def geometries(draw: st.DrawFn) -> MultiPolygon:
    """Random areas with holes."""
    seeds = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=3))
    area = shapely.union_all([blob(s, 3 + s % 20, 40 + s % 30, 60) for s in seeds])
    return polygons_of(area.difference(blob(draw(st.integers(0, 10_000)), 7, 55, 25)))


@settings(max_examples=80, deadline=None)
@given(
    geometries(), st.integers(-30, 80), st.integers(-30, 80), st.integers(1, 60),
    st.sampled_from([1.0, 2.0, 2.0003, 7]) | st.floats(0.2, 30),
)  # fmt: skip
def test_rasterise_agrees_with_shapely_at_pixel_centres(
    geometry: MultiPolygon, x: int, y: int, size: int, downsample: float
) -> None:
    mask = rasterise(geometry, x, y, (size, size + 3), downsample)
    columns, rows = np.meshgrid(l0_centres(x, size, downsample), l0_centres(y, size + 3, downsample))
    expected = shapely.contains_xy(geometry, columns, rows)
    is_clear = shapely.distance(geometry.boundary, shapely.points(columns, rows)) > 1e-6
    assert mask.shape == (size + 3, size)
    np.testing.assert_array_equal(mask[is_clear], expected[is_clear])


def test_polygons_with_a_common_border_share_no_pixel_and_leave_no_gap() -> None:
    left, right = box(0, 0, 10.5, 20), box(10.5, 0, 20, 20)  # the border runs through pixel centres
    masks = [rasterise(p, 0, 0, 20, 1.0) for p in (left, right)]
    assert (masks[0] ^ masks[1]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 9))
def test_cells_that_touch_along_all_of_their_borders_take_each_pixel_once(seed: int, downsample: float) -> None:
    seeds = shapely.multipoints(np.random.default_rng(seed).uniform(0, 100, (12, 2)).round(1))
    cells = shapely.get_parts(shapely.voronoi_polygons(seeds, extend_to=box(-50, -50, 400, 400)))
    together = sum(rasterise(cell, 3, 5, (37, 41), downsample).astype(int) for cell in cells)
    np.testing.assert_array_equal(together, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_rasterise_agrees_with_scikit_image(seed: int, num_points: int) -> None:
    outline = blob(seed, num_points, 50, 45)
    points = np.array(outline.exterior.coords)[:, ::-1] - 0.5  # scikit-image puts pixel centres at whole numbers
    expected = polygon2mask((100, 100), points)
    rows, columns = np.mgrid[:100, :100] + 0.5
    is_clear = shapely.distance(outline.boundary, shapely.points(columns, rows)) > 1e-6
    np.testing.assert_array_equal(rasterise(outline, 0, 0, 100, 1.0)[is_clear], expected[is_clear])


def test_rasterised_area_of_a_square_is_exact_and_empty_geometry_gives_nothing() -> None:
    assert rasterise(box(3, 5, 9, 12), 0, 0, 16, 1.0).sum() == 6 * 7
    assert not rasterise(MultiPolygon(), 0, 0, 16, 1.0).any()


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(8, 40))
def test_pieces_cover_the_geometry_once(geometry: MultiPolygon, max_points: int) -> None:
    pieces = list(subdivide(geometry, max_points))
    assert np.isclose(sum(p.area for p in pieces), geometry.area, rtol=1e-9)
    together = shapely.multipolygons(pieces)
    np.testing.assert_array_equal(rasterise(together, 0, 0, 120, 1.0), rasterise(geometry, 0, 0, 120, 1.0))


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(4, 50))
def test_area_shares_are_exact(geometry: MultiPolygon, l0_size: int) -> None:
    pieces = list(subdivide(geometry, 16))
    points = np.array([(0, 0), (33, 41), (60, 20), (500, 500)])
    shares = area_shares(shapely.STRtree(pieces), points, l0_size, np.ones(len(pieces), int), 2)
    expected = [geometry.intersection(box(x, y, x + l0_size, y + l0_size)).area / l0_size**2 for x, y in points]
    np.testing.assert_allclose(shares[:, 1], expected, atol=1e-9)
    assert not shares[:, 0].any()


def test_huge_annotation_is_cheap_to_cut_and_to_read() -> None:
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radii = 40_000 + 500 * np.sin(angles * 997)
    huge = Polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + 50_000)
    pieces = list(subdivide(polygons_of(huge)))
    assert max(shapely.get_num_coordinates(pieces)) <= 256
    assert rasterise(huge, 50_000, 50_000, 64, 1.0).all()


def test_lengths_round_the_same_everywhere() -> None:
    assert l0_length(512, 2.0003) == 1024
    assert l0_length(100, 4.002) == 400
