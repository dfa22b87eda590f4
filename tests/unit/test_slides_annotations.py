from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from shapely.geometry import Polygon
from small_slides import asap, data_config, square

from trainer.config.schema import IGNORE_LABEL
from trainer.errors import AnnotationError
from trainer.slides.annotations import label_geometries, read_asap

SIZE = (200, 100)


def areas(path: Path, **changes: Any) -> dict[int, float]:
    found = label_geometries(read_asap(path), data_config(**changes), SIZE, path)
    return {label: area.area for label, area in found.items()}


def test_real_camelyon17_lesions_are_read(fixtures: Path) -> None:
    path = fixtures / "annotations" / "camelyon17_patient_004_node_4.xml"
    found = read_asap(path)
    assert [(a.name, a.group) for a in found] == [(f"Annotation {i}", "Tumor") for i in range(3)]
    assert found[0].area.bounds == pytest.approx((12597.7, 88778.1, 12938.4, 89160.6), abs=0.1)
    geometry = label_geometries(found, data_config(), (97792, 221184), path)
    assert geometry[2].area == pytest.approx(sum(a.area.area for a in found))
    with pytest.raises(AnnotationError, match=r"node_4\.xml, annotation 'Annotation 0': lies outside its slide"):
        label_geometries(found, data_config(), (20000, 20000), path)


def test_exclusions_are_holes_later_classes_win_and_ignore_wins_over_all(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml",
        ("_0", square(0, 0, 40)),  # tumour, the last class
        ("stroma", square(20, 0, 40)),  # its left half is tumour already
        ("_2", square(0, 0, 10)),  # hole in the tumour
        ("blur", square(5, 5, 10)),  # a quarter of it in the hole
    )
    assert areas(path) == {2: 1600 - 100 - 75, 1: 800, IGNORE_LABEL: 100}


def test_overlapping_polygons_of_one_class_count_once(tmp_path: Path) -> None:
    assert areas(asap(tmp_path / "a.xml", ("_0", square(0, 0, 20)), ("Tumor", square(10, 0, 20)))) == {2: 600}


def test_rectangles_and_splines_are_areas_and_dots_are_skipped(tmp_path: Path) -> None:
    assert areas(asap(tmp_path / "a.xml", ("_0", square(0, 0, 20)), kind="Spline")) == {2: 400}
    assert areas(asap(tmp_path / "b.xml", ("_0", [(0, 0), (20, 10)]), kind="Rectangle")) == {2: 200}
    assert areas(asap(tmp_path / "c.xml", ("unknown", [(5, 5)]), kind="Dot")) == {}


def test_unknown_group_names_group_annotation_and_key(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("_0", square(0, 0, 9)), ("_1", square(0, 0, 9)))
    with pytest.raises(AnnotationError, match="annotation 'Annotation 1': group '_1' has no class") as error:
        areas(path)
    assert "add '_1' to data.classes[i].groups" in error.value.fix


def test_bow_tie_is_refused_with_name_and_place(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("_0", [(0, 0), (40, 40), (40, 0), (0, 40)]))
    with pytest.raises(AnnotationError, match=r"a\.xml, annotation 'Annotation 0': .*Self-intersection\[20 20\]"):
        areas(path)


def test_lopsided_crossing_of_a_few_percent_is_refused(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("_0", [(0, 0), (90, 0), (90, 90), (45, 90), (60, 70), (60, 95), (0, 90)]))
    assert not Polygon(read_points(path)).is_valid
    with pytest.raises(AnnotationError, match="no simple polygon"):
        areas(path)


def read_points(path: Path) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'X="([\d.]+)" Y="([\d.]+)"', path.read_text())]


def test_tiny_loop_where_a_hand_closed_the_outline_is_repaired(tmp_path: Path) -> None:
    points = [(0, 0), (90, 0), (90, 90), (0, 90), (0, 0.5), (0.5, -0.5)]  # the end passes the start
    assert not Polygon(points).is_valid
    assert areas(asap(tmp_path / "a.xml", ("_0", points)))[2] == pytest.approx(8100, rel=1e-3)


def test_outline_that_touches_itself_in_a_point_is_accepted(tmp_path: Path) -> None:
    points = [(0, 0), (20, 0), (20, 20), (40, 20), (40, 40), (20, 40), (20, 20), (0, 20)]
    assert areas(asap(tmp_path / "a.xml", ("_0", points))) == {2: 800}


def test_too_few_points_and_no_area_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="at least 3 points, this one has 2"):
        read_asap(asap(tmp_path / "a.xml", ("_0", [(0, 0), (5, 5)])))
    with pytest.raises(AnnotationError, match="no simple polygon"):
        read_asap(asap(tmp_path / "a.xml", ("_0", [(0, 0), (5, 5), (10, 10)])))


def test_annotation_past_the_border_is_cut_off_and_outside_refused(tmp_path: Path) -> None:
    assert areas(asap(tmp_path / "a.xml", ("_0", square(-10, 0, 20)))) == {2: 200}
    for x, y in [(195, 0), (-17, 0), (0, 97), (500, 500)]:
        with pytest.raises(AnnotationError, match=r"outside its slide.*200 x 100"):
            areas(asap(tmp_path / "b.xml", ("_0", square(x, y, 30))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<ASAP_Annotations><Annotations>", "not readable XML"),
        ("<Annotations />", "is not ASAP XML: it begins with <Annotations>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>', "not readable XML"),
        (
            '<ASAP_Annotations><Annotation Name="n" Type="Polygon"><Coordinate X="1,5" Y="2"/></Annotation>'
            "</ASAP_Annotations>",
            "annotation 'n': a coordinate is not a number",
        ),
        (
            '<ASAP_Annotations><Annotation Name="n" Type="Polygon"><Coordinate X="nan" Y="2"/></Annotation>'
            "</ASAP_Annotations>",
            "not a finite number",
        ),
    ],
)
def test_unreadable_xml_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(AnnotationError, match=message) as error:
        read_asap(tmp_path / "a.xml")
    assert "a.xml" in error.value.where


def test_image_scope_xml_is_not_taken_for_asap(fixtures: Path) -> None:
    with pytest.raises(AnnotationError, match="is not ASAP XML"):
        read_asap(fixtures / "annotations" / "slideseg_example.xml")
