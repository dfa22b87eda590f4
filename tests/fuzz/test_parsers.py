"""Whatever a file holds, a reader gives a usable result or an AnnotationError; nothing else, and soon."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_slides import asap, data_config, pyramid, square

from trainer.errors import AnnotationError
from trainer.slides import mask_image
from trainer.slides.annotations import Drawing, label_geometries, read_annotations
from trainer.slides.annotations.outline import MAX_COORDINATE_PX
from trainer.slides.dataset import SlideRecord
from trainer.slides.labels import open_labels
from trainer.slides.slide import Slide, open_slide

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # numpy's: an overflow or a division that nobody looked at
]

SIZE = (150, 110)
GROUPS = ["Tumor", "stroma", "blur", "_2", "roi", "Unclassified", "Layer 1"]
CONFIG = data_config(
    classes=[{"name": "a", "mask_values": [0]}, {"name": "b", "groups": GROUPS[:1], "mask_values": [1, "#ff0000"]},
             {"name": "c", "groups": GROUPS[1:2], "mask_values": [2]}],
    exclusion_groups=GROUPS[3:4], ignore_groups=GROUPS[2:3], skip_groups=GROUPS[4:],
)  # fmt: skip


def long(max_examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=max_examples,
        deadline=timedelta(seconds=10),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


# --- small valid files ------------------------------------------------------------------------------------------------

QUPATH = json.dumps({"type": "FeatureCollection", "features": [
    {"type": "Feature", "id": "1", "geometry": {"type": "Polygon", "coordinates": [
        [[1, 1], [60.5, 1], [60, 50], [1, 50], [1, 1]], [[5, 5], [9, 5], [9, 9], [5, 5]]]},
     "properties": {"objectType": "annotation", "name": "n", "classification": {"name": "Tumor", "color": [1, 2, 3]}}},
    {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [
        [[[1, 1], [9, 1], [9, 9], [1, 1]]], [[[20, 20], [29, 20], [29, 29], [20, 20]]]]},
     "properties": {"classification": {"names": ["stroma"]}, "childObjects": [
         {"geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": {"measurements": {"a": float("nan")}}}]}},
]}).encode()  # fmt: skip
IMAGESCOPE = (
    b'<?xml version="1.0" encoding="utf-8"?><Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="Tumor">'
    b'<Regions><Region Id="1" Type="0" NegativeROA="0"><Vertices><Vertex X="1" Y="1.5" Z="0"/><Vertex X="90" Y="1"/>'
    b'<Vertex X="90" Y="90"/></Vertices></Region><Region Id="2" Type="2" NegativeROA="1"><Vertices>'
    b'<Vertex X="50" Y="10"/><Vertex X="70" Y="30"/></Vertices></Region></Regions></Annotation></Annotations>'
)


def asap_bytes(folder: Path) -> bytes:
    return asap(folder / "seed.xml", ("Tumor", square(1, 1, 60)), ("stroma", square(30, 9, 70))).read_bytes()


def mask_bytes() -> list[tuple[str, bytes]]:
    ids = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    ids[10:60, 10:90], ids[60:90, 30:] = 1, 2
    found = []
    for suffix, image in ((".png", ids), (".png", np.dstack([ids, ids, ids])), (".bmp", ids)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format=suffix[1:])
        found.append((suffix, buffer.getvalue()))
    # No LZW: imagecodecs 2026.3.6 itself dies of a damaged stream (segmentation fault where the code after a clear code
    # is above 257, e.g. lzw_decode(bytes.fromhex("80652050"), out=1024)).
    for compression, factors in (("deflate", (1, 2, 4)), ("packbits", (1,)), (None, (1, 2))):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as file:
            for n in factors:
                file.write(ids[::n, ::n], tile=(32, 32), compression=compression, subfiletype=int(n > 1), metadata=None)
        found.append((".tif", buffer.getvalue()))
    return found


# --- damage -----------------------------------------------------------------------------------------------------------

TOKENS = [
    b"NaN", b"Infinity", b"-1e999", b"1e308", b"null", b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"[],", b"\0",
    b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"<", b">", b"&amp;", b"&#0;", b"&#x202e;", b'"', b"'", b",", b"9" * 5000,
    b'<!DOCTYPE a [<!ENTITY b "c">]>', b'<!DOCTYPE a SYSTEM "file:///etc/passwd">', b"<![CDATA[", b"<!--",
    b'encoding="utf-16"', b'encoding="klingon"', b"<Annotation>", b"</Annotation>", b"<Region>", b"</Vertices>",
    b'"type":', b'"features":[', b'"coordinates":[[]]', b'"GeometryCollection"', b"\xed\xa0\x80", b"\\ud800",
]  # fmt: skip
NUMBER = re.compile(rb"-?[0-9]+([.][0-9]+)?")
SEEDS = st.integers(0, 2**32)
"""Damage is drawn from a seed, evenly over the file; hypothesis itself prefers the beginning."""


def damaged(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, length, token = rng.randrange(len(data) + 1), rng.randint(1, 40), rng.choice(TOKENS)
        head, part, tail = data[:at], data[at : at + length], data[at + length :]
        numbers = list(NUMBER.finditer(data))
        number = rng.choice(numbers) if numbers else None
        kind = rng.choice(["number"] * 4 + ["byte"] * 3 + ["replace", "insert", "delete", "repeat", "cut"])
        if kind == "number" and number:
            new = rng.choice([b"0", b"-3", b"77.5", b"149", b"1e308", b"NaN", b"99999999999", b"", b'"1"', b"1,5"])
            data = data[: number.start()] + new + data[number.end() :]
        elif kind in ("byte", "number"):
            data = head + rng.randbytes(1) + data[at + 1 :]
        elif kind == "replace":
            data = head + token + data[at + len(token) :]
        else:
            choices = {"insert": head + token + part + tail, "delete": head + tail, "repeat": head + part * 50 + tail}
            data = choices.get(kind, head)
    return data


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 14).flatmap(lambda k: odd if k == 7 else usual)


# --- what must hold ---------------------------------------------------------------------------------------------------


def check_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        drawing = read_annotations(path)
    except AnnotationError as error:
        check_error(error, path)
        return
    check_drawing(drawing)
    try:
        areas = label_geometries(drawing, CONFIG, SIZE)
    except AnnotationError as error:
        check_error(error, path)
        return
    assert all(shapely.is_valid(area) for area in areas.values())
    together = shapely.union_all(list(areas.values()))
    assert together.area == pytest.approx(sum(area.area for area in areas.values()), abs=1e-3)
    assert together.area <= SIZE[0] * SIZE[1] + 1e-6


def check_error(error: AnnotationError, path: Path) -> None:
    assert str(path) in error.where and error.fix
    str(error).encode()
    assert len(str(error)) < 5000


def check_drawing(drawing: Drawing) -> None:
    for annotation in drawing.areas:
        area = annotation.area
        assert area.geom_type in ("Polygon", "MultiPolygon") and area.is_valid and area.area > 0
        assert np.abs(area.bounds).max() <= MAX_COORDINATE_PX
        (annotation.name + annotation.group).encode()
    json.dumps(drawing.passed_over)
    assert all(count > 0 for count in drawing.passed_over.values()) and len(drawing.passed_over) < 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@long(9000)
@given(st.integers(0, 2), SEEDS)
def test_damaged_annotation_files(folder: Path, which: int, seed: int) -> None:
    data = (QUPATH, IMAGESCOPE, asap_bytes(folder))[which]
    check_file(folder / "a.any", damaged(data, seed))


@long(500)
@given(st.binary(max_size=200))
def test_random_bytes(folder: Path, data: bytes) -> None:
    check_file(folder / "a.any", data)


# --- files of the right form with wrong things in them ----------------------------------------------------------------

NUMBERS = (
    st.integers(-20, 170)
    | st.floats(-20, 170).map(lambda v: round(v, 2))
    | st.sampled_from([1e308, -1e308, 1e7, 1e-320, 0.0, -0.0, float("nan"), float("inf"), 10**400, 2**63])
)
POINT = st.tuples(st.integers(-10, 160) | st.floats(-10, 160), st.integers(-10, 120)).map(list)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(GROUPS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ODD_POINT = st.lists(NUMBERS, min_size=1, max_size=4) | ANYTHING
TRIANGLE = st.lists(POINT, min_size=3, max_size=3)
RING = mostly(TRIANGLE | st.lists(POINT, max_size=8), st.lists(ODD_POINT | POINT, max_size=6) | ANYTHING)
POLYGON = mostly(TRIANGLE.map(lambda ring: [ring]) | st.lists(RING, min_size=1, max_size=3), ANYTHING)
POLYGONS = mostly(st.lists(POLYGON, min_size=1, max_size=3), ANYTHING)
SIMPLE = (
    st.fixed_dictionaries({"type": st.just("Polygon"), "coordinates": POLYGON})
    | st.fixed_dictionaries({"type": st.just("MultiPolygon"), "coordinates": POLYGONS})
    | st.fixed_dictionaries({"type": st.sampled_from(["Point", "LineString"])})
)
GEOMETRY = mostly(
    st.recursive(
        SIMPLE,
        lambda inner: st.fixed_dictionaries(
            {"type": st.just("GeometryCollection"), "geometries": st.lists(inner, max_size=3)}
        ),
        max_leaves=3,
    ),
    ANYTHING | st.fixed_dictionaries({"type": ANYTHING, "coordinates": ANYTHING}),
)
CLASS = mostly(
    st.sampled_from(GROUPS).map(lambda group: {"name": group}),
    ANYTHING | st.fixed_dictionaries({"name": ANYTHING}, optional={"parentClass": ANYTHING, "names": ANYTHING}),
)
FEATURE = mostly(
    st.recursive(
        st.fixed_dictionaries(
            {"geometry": GEOMETRY, "properties": st.fixed_dictionaries({"classification": CLASS, "name": ANYTHING})}
        ),
        lambda inner: st.fixed_dictionaries(
            {"geometry": GEOMETRY, "properties": st.fixed_dictionaries({"childObjects": st.lists(inner, max_size=3)})}
        ),
        max_leaves=3,
    ),
    ANYTHING,
)


@long(2500)
@given(mostly(st.lists(FEATURE, max_size=4), ANYTHING), mostly(st.just("FeatureCollection"), ANYTHING), st.booleans())
def test_geojson_with_wrong_parts(folder: Path, features: Any, kind: Any, features_first: bool) -> None:
    members = [("type", kind), ("features", features)][:: -1 if features_first else 1]
    check_file(folder / "a.geojson", json.dumps(dict(members)).encode())


XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
                   max_size=6)  # fmt: skip
XML_VALUE = NUMBERS.map(str) | st.integers(0, 150).map(str) | st.sampled_from(GROUPS) | XML_TEXT
TAGS = ["Annotation", "Annotations", "Coordinate", "Region", "Vertices", "Vertex"]
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["Name", "Type", "PartOfGroup", "Order", "X", "Y", "Id", "NegativeROA"]), XML_VALUE, max_size=4
)
TYPES = {"ASAP_Annotations": ["Polygon", "Spline", "Rectangle", "Dot"], "Annotations": ["0", "1", "2", "4"]}


def tag(name: str, attributes: dict[str, Any], *content: str) -> str:
    text = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{name} {text}>{''.join(content)}</{name}>"


def points(name: str) -> st.SearchStrategy[list[str]]:
    point = mostly(POINT.map(lambda p: {"X": p[0], "Y": p[1]}), ATTRIBUTES)
    return (st.lists(point, max_size=8) | TRIANGLE.map(lambda ring: [{"X": x, "Y": y} for x, y in ring])).map(
        lambda found: [tag(name, attributes) for attributes in found]
    )


@st.composite
def annotations(draw: st.DrawFn, root: str) -> str:
    kind, group = st.sampled_from(TYPES[root]), draw(mostly(st.sampled_from(GROUPS), XML_VALUE))
    if root == "ASAP_Annotations":
        return tag("Annotation", {"Type": draw(kind), "PartOfGroup": group}, *draw(points("Coordinate")))
    regions = [
        tag("Region", {"Type": draw(kind), "NegativeROA": draw(st.integers(0, 1))}, *draw(points("Vertex")))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return tag("Annotation", {"Name": group}, *regions)


ODD_XML = st.recursive(
    ATTRIBUTES.map(lambda attributes: tag("Vertex", attributes)),
    lambda inner: st.builds(tag, st.sampled_from(TAGS), ATTRIBUTES, inner, inner),
    max_leaves=6,
)


@long(2500)
@given(st.sampled_from(list(TYPES)).flatmap(
    lambda root: st.tuples(st.just(root), st.lists(mostly(annotations(root), ODD_XML), max_size=4))
))  # fmt: skip
def test_xml_with_wrong_parts(folder: Path, file: tuple[str, list[str]]) -> None:
    root, parts = file
    check_file(folder / "a.xml", tag(root, {}, *parts).encode())


# --- mask images ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slide(folder: Path) -> Slide:
    return open_slide(pyramid(folder / "slide.tif", np.zeros((SIZE[1], SIZE[0], 3), np.uint8)))


@long(4000)
@given(st.integers(0, 5), SEEDS, st.booleans())
def test_damaged_masks(folder: Path, slide: Slide, which: int, seed: int, is_held: bool) -> None:
    suffix, data = mask_bytes()[which]
    path = folder / f"mask{suffix}"
    path.write_bytes(damaged(data, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_image, "HOLD_PIXELS", 1 << 24 if is_held else 1000)
        try:
            labels = open_labels(SlideRecord(slide.path, path), slide, CONFIG)
            read = labels.read(-5, 3, 40, 4.0)
            shares = labels.fractions(np.array([(0, 0), (20, 9)]), 100)
            report = labels.report
            labels.outlines(5.0)
        except AnnotationError as error:
            check_error(error, path)
            return
    assert read.shape == (40, 40) and set(np.unique(read)) <= {0, 1, 2, 255}
    assert ((shares >= 0) & (shares.sum(axis=1, keepdims=True) <= 1 + 1e-6)).all()
    assert report.source == "mask image"
