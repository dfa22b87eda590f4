from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from shapely.geometry import Polygon, box, shape
from small_slides import Points, data_config, square

from trainer.errors import AnnotationError
from trainer.slides.annotations import Drawing, geojson, label_geometries, read_annotations


def ring(points: Points) -> list[list[float]]:
    return [list(p) for p in [*points, points[0]]]


def polygon(*rings: Points) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring(r) for r in rings]}


def feature(geometry: Any, group: Any = "Tumor", **properties: Any) -> dict[str, Any]:
    named = {"name": group, "color": [200, 0, 0]} if isinstance(group, str) else group
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": named, **properties}}


def read(folder: Path, *features: Any, **top: Any) -> Drawing:
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **top}))
    return read_annotations(path)


def refusal(folder: Path, *features: Any, **top: Any) -> str:
    with pytest.raises(AnnotationError) as error:
        read(folder, *features, **top)
    assert "a.geojson" in error.value.where and error.value.fix
    return f"{error.value.where}: {error.value.what}"


def triangle(first: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[first, 2], [1, 2], [3, 3]]]}


SQUARE = polygon(square(0, 0, 10))


def test_real_qupath_export_is_read(fixtures: Path) -> None:
    path = fixtures / "annotations" / "dlup_qupath05.geojson"
    found = read_annotations(path)
    truth = [shape(f["geometry"]) for f in json.loads(path.read_text())["features"]]  # an independent reading
    assert [a.name for a in found.areas] == ["UT", "I", "I"] and found.groups == {"Unclassified": 3}
    assert all(a.area.equals(t) for a, t in zip(found.areas, truth, strict=True)) and not found.passed_over
    areas = label_geometries(found, data_config(classes=[{"name": "a"}, {"name": "b", "groups": ["Unclassified"]}]),
                             (12000, 8000))  # fmt: skip
    assert areas[1].area == pytest.approx(sum(t.area for t in truth))


def test_holes_multipolygons_and_collections_are_areas(tmp_path: Path) -> None:
    parts = [polygon(square(0, 0, 9)), polygon(square(20, 0, 9), square(22, 2, 2))]
    multi = {"type": "MultiPolygon", "coordinates": [part["coordinates"] for part in parts]}
    mixed = {"type": "GeometryCollection", "geometries": [SQUARE, {"type": "Point", "coordinates": [1, 1]}]}
    found = read(tmp_path, feature(polygon(square(0, 0, 10), square(2, 2, 5))), feature(multi), feature(mixed))
    assert [a.area.area for a in found.areas] == [75, 81 + 77, 100]
    assert found.passed_over == {"point: not an area": 1}


def test_overlapping_parts_of_one_object_count_once(tmp_path: Path) -> None:
    parts = [polygon(square(0, 0, 10))["coordinates"], polygon(square(5, 0, 10))["coordinates"]]
    found = read(tmp_path, feature({"type": "MultiPolygon", "coordinates": parts}))
    assert found.areas[0].area.equals(box(0, 0, 15, 10))


def test_classes_are_named_as_qupath_shows_them_in_every_version(tmp_path: Path) -> None:
    classes: dict[str, Any] = {
        "Tumor": {"name": "Tumor", "colorRGB": -3670016},  # 0.2
        "Tumor: Positive": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]},  # since 0.4
        "Tumor: Positive: 1+": {"name": "1+", "parentClass": {"name": "Positive", "parentClass": {"name": "Tumor"}}},
        "Unclassified": None,
    }
    found = read(tmp_path, *(feature(SQUARE, c) for c in classes.values()))
    assert [a.group for a in found.areas] == list(classes)
    bare = read(tmp_path, {"geometry": SQUARE}, {"geometry": SQUARE, "properties": None}, feature(SQUARE, {}))
    assert bare.groups == {"Unclassified": 3}


def test_objects_inside_objects_are_read_after_them(tmp_path: Path) -> None:
    inner = feature(SQUARE, "C", name="inner")
    outer = feature(SQUARE, "B", name="outer", childObjects=[inner, feature(SQUARE, "D")])
    assert [a.group for a in read(tmp_path, outer, feature(SQUARE, "E")).areas] == ["B", "C", "D", "E"]


def test_measurements_that_are_nan_are_no_fault(tmp_path: Path) -> None:
    assert read(tmp_path, feature(SQUARE, measurements={"Mean": float("nan")})).groups == {"Tumor": 1}


def test_what_is_no_area_is_counted(tmp_path: Path) -> None:
    geometries = [
        {"type": "MultiPoint", "coordinates": [[1, 1]]}, {"type": "LineString", "coordinates": [[1, 1], [2, 2]]},
        {"type": "Polygon", "coordinates": []}, polygon([(1, 1)]), polygon([(1, 1), (2, 2), (3, 3)]), None,
        polygon([(1, 0), (1e-36, 1), (0, 1)]),
    ]  # fmt: skip
    found = read(tmp_path, *(feature(g) for g in geometries))
    assert not found.areas and found.passed_over == {
        "point: not an area": 1, "line: not an area": 1, "outline that encloses no area": 4,
        "object without a geometry": 1,
    }  # fmt: skip


def test_real_freehand_loops_are_repaired_and_bow_ties_named(tmp_path: Path) -> None:
    points = [(0, 0), (90, 0), (90, 90), (0, 90), (0, 0.5), (0.5, -0.5)]
    assert not Polygon(points).is_valid
    assert read(tmp_path, feature(polygon(points))).areas[0].area.area == pytest.approx(8100, rel=1e-3)
    bow_tie = feature(polygon([(0, 0), (40, 40), (40, 0), (0, 40)]), name="my area")
    assert "annotation 'my area': the outline is no simple polygon" in refusal(tmp_path, feature(SQUARE), bow_tie)
    outside = feature(polygon(square(0, 0, 10), square(50, 50, 10)))
    assert "annotation 'feature 1': the outline is no simple polygon: Hole lies outside" in refusal(tmp_path, outside)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ("Polygon", "a geometry is 'Polygon', not an object"),
        ({"type": "Circle"}, "geometry type 'Circle' is not known"),
        ({"type": ["Polygon"]}, "geometry type a list is not known"),
        ({"type": "Polygon"}, "coordinates is None, not a list"),
        ({"type": "Polygon", "coordinates": [1, 2]}, "a ring is 1, not a list"),
        ({"type": "Polygon", "coordinates": [[1, 2]]}, "a ring is not a list of [x, y] points"),
        ({"type": "Polygon", "coordinates": [[[1], [2], [3]]]}, "a ring is not a list of [x, y] points"),
        (triangle("1"), "a coordinate is not a number"),
        (triangle(True), "a coordinate is not a number"),
        (triangle(None), "a coordinate is not a number"),
        (triangle(10**400), "a coordinate is not a finite number"),
        (
            {"type": "Polygon", "coordinates": [[[float("nan"), 2], [1, 2], [3, 3]]]},
            "a coordinate is not a finite number",
        ),
        (
            {"type": "Polygon", "coordinates": [[[1e308, 2], [1, 2], [3, 3]]]},
            "a coordinate of 1e+308 px lies on no slide",
        ),
        ({"type": "MultiPolygon", "coordinates": [[[1, 2]]]}, "a ring is not a list of [x, y] points"),
        ({"type": "GeometryCollection"}, "geometries is None, not a list"),
    ],
)
def test_geometry_of_the_wrong_kind_is_named(tmp_path: Path, geometry: Any, message: str) -> None:
    assert f"annotation 'area 5': {message}" in refusal(tmp_path, feature(geometry, name="area 5"))


def test_features_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    assert "a feature is 5, not an object" in refusal(tmp_path, feature(SQUARE), 5)
    assert "'feature 1': properties is a list, not an object" in refusal(
        tmp_path, {"geometry": SQUARE, "properties": [1]}
    )
    assert "a classification is 7, not an object" in refusal(tmp_path, feature(SQUARE, 7))
    assert "a class name is 7, not a text" in refusal(tmp_path, feature(SQUARE, {"name": 7}))
    assert "names is 'A', not a list" in refusal(tmp_path, feature(SQUARE, {"names": "A"}))
    assert "childObjects is an object, not a list" in refusal(tmp_path, feature(SQUARE, childObjects={"a": 1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(feature(SQUARE)), "not a GeoJSON FeatureCollection: its type is 'Feature', it has no features"),
        (json.dumps([feature(SQUARE)]), "not a GeoJSON FeatureCollection: it holds a list"),
        ('{"features": []}', "not a GeoJSON FeatureCollection: its type is None"),
        ('{"type": "FeatureCollection", "features": {}}', "has no features"),
        ('{"type": "FeatureCollection", "features": [], "features": []}', "has two lists of features"),
        ('{"type": "FeatureCollection", "features": [', "not readable JSON"),
        ('{"type": "FeatureCollection", "features": []} x', "not readable JSON: extra data"),
        ('{"type": "FeatureCollection" "features": []}', "not readable JSON: expecting ','"),
        ('{"a": "\0"}', "not readable JSON: Invalid control character"),
        ('{"a": ' + "[" * 100_000, "not readable JSON: maximum recursion depth exceeded"),
        ('{"a": ' + '{"a": ' * 100_000, "not readable JSON: maximum recursion depth exceeded"),
        ('{"a": ' + "9" * 5000 + "}", "not readable JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_feature_collection_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(AnnotationError) as error:
        read_annotations(tmp_path / "a.geojson")
    assert message in error.value.what


def test_deep_collections_and_classes_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    deep, group = SQUARE, {"name": "a"}
    for _ in range(sys.getrecursionlimit() // 3):
        deep = {"type": "GeometryCollection", "geometries": [deep]}
        group = {"name": "a", "parentClass": group}
    assert read(tmp_path, feature(deep)).areas[0].area.area == 100
    assert read(tmp_path, feature(SQUARE, group)).areas[0].group.count("a") == sys.getrecursionlimit() // 3 + 1


def test_byte_order_marks_are_read_and_other_encodings_named(tmp_path: Path) -> None:
    text = json.dumps({"type": "FeatureCollection", "features": [feature(SQUARE, "Drüse")]}, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_bytes(text.encode(encoding))
        assert read_annotations(tmp_path / "a.json").groups == {"Drüse": 1}
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"a\.json: is not UTF-8 text"):
        read_annotations(tmp_path / "a.json")


def test_names_with_half_characters_can_be_printed(tmp_path: Path) -> None:
    drawing = read(tmp_path, feature(SQUARE, "a\ud800b\x1b[31m", name="\udfff"))
    assert drawing.areas[0].group.encode() == "a\ufffdb\ufffd[31m".encode() and drawing.areas[0].name.encode()


def test_too_large_a_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geojson, "MAX_BYTES", 100)
    assert "MiB can be read" in refusal(tmp_path, feature(SQUARE), feature(SQUARE))
