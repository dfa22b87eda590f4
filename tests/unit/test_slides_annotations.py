from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon, box
from small_slides import asap, data_config, square

from trainer.config.schema import IGNORE_LABEL
from trainer.errors import AnnotationError
from trainer.slides.annotations import label_geometries, read_annotations

SIZE = (200, 100)


def areas(path: Path, **changes: Any) -> dict[int, float]:
    found = label_geometries(read_annotations(path), data_config(**changes), SIZE)
    return {label: area.area for label, area in found.items()}


def test_real_camelyon17_lesions_are_read(fixtures: Path) -> None:
    path = fixtures / "annotations" / "camelyon17_patient_004_node_4.xml"
    found = read_annotations(path)
    assert [(a.name, a.group) for a in found.areas] == [(f"Annotation {i}", "Tumor") for i in range(3)]
    assert found.areas[0].area.bounds == pytest.approx((12597.7, 88778.1, 12938.4, 89160.6), abs=0.1)
    root = ElementTree.parse(path).getroot()  # an independent reading
    outlines = [[(float(c.get("X")), float(c.get("Y"))) for c in a.iter("Coordinate")] for a in root.iter("Annotation")]
    assert [a.area.area for a in found.areas] == pytest.approx([Polygon(outline).area for outline in outlines])
    geometry = label_geometries(found, data_config(), (97792, 221184))
    assert geometry[2].area == pytest.approx(sum(a.area.area for a in found.areas))


def test_annotation_of_another_slide_is_one_clear_error(fixtures: Path, tmp_path: Path) -> None:
    found = read_annotations(fixtures / "annotations" / "camelyon17_patient_004_node_4.xml")
    with pytest.raises(AnnotationError, match=r"all of its 3 area\(s\): .*Is it the annotation of another slide\?"):
        label_geometries(found, data_config(), (20000, 20000))
    path = asap(tmp_path / "a.xml", ("_0", square(0, 0, 20)), ("_0", square(500, 0, 20)))
    with pytest.raises(AnnotationError, match=r"annotation 'Annotation 1': lies outside its slide: x 500 to 520"):
        areas(path)


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


def test_accidental_clicks_enclose_nothing_and_are_passed_over_with_a_count(tmp_path: Path) -> None:
    clicks = [[(3, 3)], [(0, 0), (5, 5)], [(0, 0), (5, 5), (10, 10)], [(1, 1), (1, 1), (1, 1)], []]
    found = read_annotations(asap(tmp_path / "a.xml", *(("_0", c) for c in clicks), ("_0", square(0, 0, 9))))
    assert [a.name for a in found.areas] == ["Annotation 5"]
    assert found.passed_over == {"outline that encloses no area": 5}


def test_skipped_groups_are_as_if_never_drawn(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("_0", square(0, 0, 9)), ("roi", square(-500, -500, 2000)))
    assert areas(path, skip_groups=["roi"]) == {2: 81}
    with pytest.raises(AnnotationError, match=r"group 'roi' has no class. The file has '_0' \(1\), 'roi' \(1\)"):
        areas(path)


def test_annotation_past_the_border_is_cut_off_and_outside_refused(tmp_path: Path) -> None:
    assert areas(asap(tmp_path / "a.xml", ("_0", square(-10, 0, 20)))) == {2: 200}
    for x, y in [(195, 0), (-17, 0), (0, 97), (500, 500)]:
        with pytest.raises(AnnotationError, match=r"outside its slide.*200 x 100"):
            areas(asap(tmp_path / "b.xml", ("_0", square(x, y, 30))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<ASAP_Annotations><Annotations>", "not readable XML"),
        ("<html />", "is not an annotation file: it begins with <html>, not with <ASAP_Annotations> or <Annotations>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>', "refused .*document types"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><ASAP_Annotations/>', "refused .*document types"),
        ("<ASAP_Annotations>&lol;</ASAP_Annotations>", "not readable XML: undefined entity"),
        ('<?xml version="1.0" encoding="klingon"?><ASAP_Annotations/>', "not readable XML: unknown encoding"),
        ("<ASAP_Annotations>\0</ASAP_Annotations>", "not readable XML"),
        ("", "is empty"),
        (" \n ", "is empty"),
        ("group,x,y", "is neither XML nor JSON: it begins with b'group,x,'"),
        ("<ASAP_Annotations><Annotation Type='Polygon'><Annotation Type='Polygon'>", "holds another annotation"),
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
        (
            '<ASAP_Annotations><Annotation Name="n" Type="Polygon"><Coordinate X="1e300" Y="2"/></Annotation>'
            "</ASAP_Annotations>",
            r"a coordinate of 1e\+300 px lies on no slide",
        ),
        (
            '<ASAP_Annotations><Annotation Name="n" Type="Polygon"><Coordinate X="1"/></Annotation></ASAP_Annotations>',
            "annotation 'n': a point has no Y",
        ),
        (
            '<ASAP_Annotations><Annotation Type="Polygon"><Coordinate Order="first" X="1" Y="1"/></Annotation>'
            "</ASAP_Annotations>",
            "a point's Order is not a number",
        ),
    ],
)
def test_unreadable_xml_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(AnnotationError, match=message) as error:
        read_annotations(tmp_path / "a.xml")
    assert "a.xml" in error.value.where


def test_points_are_taken_in_their_order_and_measurements_are_counted(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("_0", [(0, 0), (20, 20), (20, 0), (0, 20)]))
    swapped = path.read_text().replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"')
    path.write_text(swapped.replace('Order="x"', 'Order="2"'))
    assert areas(path) == {2: 400}
    for kind, reason in (("Dot", "Dot"), ("Measurement", "Measurement"), ("Spiral", "annotation of unknown type")):
        found = read_annotations(asap(tmp_path / "b.xml", ("_0", [(5, 5)]), kind=kind))
        assert found.passed_over == {f"{reason}: not an area": 1} and not found.areas


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_declared_encodings_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    path = asap(tmp_path / "a.xml", ("Drüse", square(0, 0, 9)))
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    path.write_bytes((head + path.read_text()).encode(encoding))
    assert read_annotations(path).groups == {"Drüse": 1}


def test_text_of_another_encoding_than_declared_is_named(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("Drüse", square(0, 0, 9)))
    path.write_bytes(path.read_text().encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"a\.xml: is not readable XML: not well-formed"):
        read_annotations(path)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="there is no such file"):
        read_annotations(tmp_path / "gone.xml")
    with pytest.raises(AnnotationError, match="cannot be read: Is a directory"):
        read_annotations(tmp_path)
    locked = asap(tmp_path / "a.xml", ("_0", square(0, 0, 9)))
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(AnnotationError, match="cannot be read: Permission denied"):
        read_annotations(locked)


def test_reader_is_chosen_by_content_not_by_name(tmp_path: Path) -> None:
    assert read_annotations(asap(tmp_path / "a.geojson", ("_0", square(0, 0, 9)))).program == "ASAP"


def test_terminal_escapes_in_names_are_not_printed(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("\x9b31m\u202eevil", square(0, 0, 9)))
    with pytest.raises(AnnotationError) as error:
        areas(path)
    assert "\x9b" not in str(error.value) and "\u202e" not in str(error.value) and "31m" in str(error.value)


def test_tangle_of_lines_is_refused_at_once_and_not_repaired(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((5000, 2)) * 1000  # GEOS would take gigabytes
    with pytest.raises(AnnotationError, match=r"no simple polygon: it crosses itself about \de\+06 times"):
        read_annotations(asap(tmp_path / "a.xml", ("_0", points.tolist())))


def test_many_areas_are_combined_as_few_are(tmp_path: Path) -> None:
    cells = [("_0", square(x, y, 6)) for x in range(0, 190, 8) for y in range(0, 90, 8)]
    found = areas(asap(tmp_path / "a.xml", *cells, ("blur", square(3, 3, 80)), ("stroma", square(0, 0, 99))))
    ignored, tumour = box(3, 3, 83, 83), shapely.union_all([Polygon(points) for _, points in cells])
    inside = box(0, 0, 200, 100)
    assert found == pytest.approx({
        IGNORE_LABEL: 6400,
        2: tumour.difference(ignored).intersection(inside).area,
        1: box(0, 0, 99, 99).difference(ignored).difference(tumour).area,
    })  # fmt: skip
