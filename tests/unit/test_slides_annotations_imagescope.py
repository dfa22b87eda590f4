from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from shapely.geometry import Polygon
from small_slides import Points, data_config, square

from trainer.errors import AnnotationError
from trainer.slides.annotations import Drawing, label_geometries, read_annotations


def region(points: Points, kind: str = "0", negative: int = 0, number: int = 1) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="{number}" Type="{kind}" NegativeROA="{negative}"><Attributes/>'
        f"<Vertices>{vertices}</Vertices></Region>"
    )


def layer(*regions: str, name: str = "tumour", number: int = 1) -> str:
    return (
        f'<Annotation Id="{number}" Name="{name}"><Attributes><Attribute Name="Description" Value=""/></Attributes>'
        f"<Regions>{''.join(regions)}</Regions></Annotation>"
    )


def read(folder: Path, *layers: str) -> Drawing:
    (folder / "a.xml").write_text(f'<Annotations MicronsPerPixel="0.25">{"".join(layers)}</Annotations>')
    return read_annotations(folder / "a.xml")


def test_real_image_scope_file_agrees_with_the_areas_that_it_states(fixtures: Path) -> None:
    path = fixtures / "annotations" / "slideseg_example.xml"
    found = read_annotations(path)
    assert found.groups == {"BALT hyperplasia": 9, "airspace enlargment": 5} and not found.passed_over
    stated = [float(r.attrib["Area"]) for r in ElementTree.parse(path).getroot().iter("Region")]
    assert [a.area.area for a in found.areas] == pytest.approx(stated, rel=1e-4)  # one outline has a loop: 5e-6
    classes = [{"name": "a"}, {"name": "b", "groups": ["BALT hyperplasia"]}]
    areas = label_geometries(
        found, data_config(classes=classes, skip_groups=["airspace enlargment"]), (100_000, 80_000)
    )
    assert areas[1].area == pytest.approx(sum(stated[:9]), rel=1e-4)


def test_negative_regions_are_holes_of_their_layer_only(tmp_path: Path) -> None:
    hole = region(square(2, 2, 5), negative=1)
    found = read(
        tmp_path,
        layer(hole, region(square(0, 0, 10)), region(square(20, 0, 10))),  # the order in the file does not matter
        layer(region(square(0, 0, 10)), name="stroma"),
    )
    assert [(a.group, a.area.area) for a in found.areas] == [("tumour", 75), ("tumour", 100), ("stroma", 100)]


def test_negative_regions_that_cut_nothing_and_regions_cut_away_are_counted(tmp_path: Path) -> None:
    lost = region(square(50, 50, 5), negative=1)
    found = read(tmp_path, layer(region(square(2, 2, 4)), region(square(0, 0, 9), negative=1), lost))
    assert not found.areas and found.passed_over == {
        "outline that encloses no area": 1,
        "negative region that cuts no other region of its layer": 1,
    }


def test_layers_without_a_name_are_known_by_their_number(tmp_path: Path) -> None:
    found = read(tmp_path, layer(region(square(0, 0, 9)), name="", number=7), layer(region(square(0, 0, 9))))
    assert found.groups == {"Layer 7": 1, "tumour": 1}


def test_rectangles_and_ellipses_fill_the_box_of_their_corners(tmp_path: Path) -> None:
    corners = [(10, 20), (50, 20), (50, 40), (10, 40)]
    shapes = [("1", corners), ("1", corners[::2]), ("2", corners), ("2", corners[::2])]
    found = read(tmp_path, layer(*(region(points, kind) for kind, points in shapes)))
    assert [a.area.area for a in found.areas[:2]] == [800, 800]
    for ellipse in (a.area for a in found.areas[2:]):
        assert ellipse.bounds == pytest.approx((10, 20, 50, 40))
        assert ellipse.area == pytest.approx(np.pi * 20 * 10, rel=2e-4)


def test_lines_texts_and_accidental_clicks_are_counted(tmp_path: Path) -> None:
    regions = [region(square(0, 0, 9), kind) for kind in ("3", "4", "5", "")] + [region([(1, 1)]), region([], "2")]
    found = read(tmp_path, layer(*regions))
    assert not found.areas
    assert found.passed_over == {"arrow, ruler, line or text: not an area": 4, "outline that encloses no area": 2}


def test_bow_tie_names_layer_and_region(tmp_path: Path) -> None:
    bow_tie = [(0, 0), (40, 40), (40, 0), (0, 40)]
    assert not Polygon(bow_tie).is_valid
    with pytest.raises(AnnotationError, match=r"a\.xml, annotation 'tumour, region 3': .*Self-intersection") as error:
        read(tmp_path, layer(region(square(0, 0, 9)), region(bow_tie, number=3)))
    assert "in ImageScope" in error.value.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (layer("<Region><Vertices><Vertex X='1'/></Vertices></Region>"), "a point has no Y"),
        (layer("<Region><Vertices><Vertex X='1' Y='inf'/></Vertices></Region>"), "not a finite number"),
        (layer("<Region><Vertices><Vertex X='a' Y='1'/></Vertices></Region>"), "not a number"),
        (layer(region([(1, 1), (float("inf"), 2)], "2")), "not a finite number"),
        (layer("<Region><Region/></Region>"), "holds another annotation"),
        (layer(layer()), "holds another annotation"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, text)


def test_tags_out_of_place_are_ignored(tmp_path: Path) -> None:
    assert not read(tmp_path, region(square(0, 0, 9)), "<Vertex X='a'/>", layer("<Vertex/>")).areas
