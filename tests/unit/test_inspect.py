from __future__ import annotations

import argparse
import base64
import io
import re
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from small_slides import asap, manifest, run_config, square, tissue_slide

from trainer.cli import inspect as command
from trainer.config import Config
from trainer.config.schema import IGNORE_LABEL
from trainer.errors import DataError, WidefieldError
from trainer.inspect.choose import contact_rows, find_slide, spread_over_splits
from trainer.inspect.drawing import density, label_rings
from trainer.inspect.markup import join, tag
from trainer.inspect.remarks import remarks
from trainer.inspect.write import write_page
from trainer.patches.build import build_index
from trainer.patches.index import PatchIndex
from trainer.patches.sample import is_positive

VOID = {"br", "img", "input", "meta"}
HOSTILE = "<img src=x onerror=alert(1)>&quot;'.png"


@dataclass
class Page(HTMLParser):
    """What a strict reader finds on a page; unbalanced tags and equal ids are errors."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    shapes: dict[tuple[str, str], str] = field(default_factory=lambda: defaultdict(str))  # (section, layer) -> paths
    sections: dict[str, str] = field(default_factory=lambda: defaultdict(str))  # id -> text

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.feed(self.html)
        self.close()
        assert not self.open
        ids = [a["id"] for _, a in self.tags if "id" in a]
        assert len(ids) == len(set(ids))
        self.ids = set(ids)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attributes}
        self.tags.append((name, found))
        if name not in VOID:
            self.open.append((name, found))
        layer = next((a["class"].split()[1] for n, a in self.open if n == "g"), "")
        if name == "path" and "box" in found.get("class", ""):
            self.shapes[self.section, layer] += found["d"]

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop()[0] == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] != "style":
            self.text.append(data)
            self.sections[self.section] += f" {data}"

    @property
    def section(self) -> str:
        return next((a.get("id", "") for n, a in self.open if n == "section"), "")

    def all(self, name: str) -> list[dict[str, str]]:
        return [a for n, a in self.tags if n == name]


def rectangles(path: str) -> set[tuple[int, ...]]:
    return {tuple(map(int, m)) for m in re.findall(r"M(\d+) (\d+)h(\d+)v\3h-\3z", path)}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five slides of 256 x 192: tissue in all but the outer columns, tumour in a square, some of it ignored."""
    rows = []
    for n, name in enumerate(("a.png", "b.png", "c.png", "d.png", HOSTILE)):
        tissue_slide(tmp_path / name, 256, 192, 32, 224)
        asap(tmp_path / f"{n}.xml", ("_0", square(64, 64, 64)), ("blur", square(96, 96, 32)))
        rows.append(f'"{name}",{n}.xml,p{n},<b>c</b>,{"test" if n == 4 else ""}')
    manifest(tmp_path, *rows)
    return tmp_path


def index_and_page(config: Config, **settings: object) -> tuple[PatchIndex, Page]:
    path = config.output / "index.parquet"
    index = build_index(config, path)
    return index, Page(write_page(index, config, path, **settings).read_text())  # type: ignore[arg-type]


def test_page_is_well_formed_and_needs_nothing_from_outside(cohort: Path) -> None:
    _, page = index_and_page(run_config(cohort))
    assert not re.search(r"https?:|url\(|@import", page.html)
    assert not page.all("script") and not page.all("link")
    sources = [a["src"] for a in page.all("img")] + [a["href"] for n in ("a", "use", "image") for a in page.all(n)]
    assert sources and all(s.startswith(("data:image/", "#")) for s in sources)
    assert {s[1:] for s in sources if s.startswith("#")} <= page.ids
    assert {a["for"] for a in page.all("label")} <= page.ids
    assert all(a["alt"] for a in page.all("img"))


def test_names_from_files_stay_text(cohort: Path) -> None:
    _, page = index_and_page(run_config(cohort, name="</title><script>alert(1)</script>"))
    assert not page.all("script") and not page.all("b:c") and all("onerror" not in a for _, a in page.tags)
    assert HOSTILE in page.text and "<b>c</b>" in page.text
    assert any(HOSTILE in a["alt"] for a in page.all("img"))


@given(st.text(), st.text())
def test_any_text_comes_back_from_markup(content: str, attribute: str) -> None:
    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

        def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
            assert dict(attributes) == {"title": attribute} and name == "p"

    found: list[str] = []
    reader = Reader(convert_charrefs=True)
    reader.feed(tag("p", content, title=attribute))
    reader.close()
    assert "".join(found) == content
    assert join(tag("b", content)) == tag("b", content)  # what is markup is not escaped again


def test_every_slide_is_listed_with_the_counts_of_the_index(cohort: Path) -> None:
    config = run_config(cohort)
    index, page = index_and_page(config)
    positive = is_positive(index.label_fractions, config.sampling.min_tumour_fraction)
    assert page.all("section")[-1]["id"] == "slide-4"
    for number, record in enumerate(index.slides):
        section = page.sections[f"slide-{number}"]
        assert record.slide.name in section and record.split in section
        for size in index.patch_sizes:
            rows = index.rows_of(number, size)
            dropped = index.infos[number].num_dropped[str(size)]  # type: ignore[index]
            line = f"{size} px {rows.stop - rows.start} {positive[rows].sum()} {dropped}"
            assert line in re.sub(r"\s+", " ", section)
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for size in index.patch_sizes:
        for split in ("train", "val", "test"):
            chosen = index.select(size, split)
            share = positive[chosen].mean()
            slides = len(set(index.slide[chosen].tolist()))
            assert f"{size} px {split} {slides} {len(chosen)} {positive[chosen].sum()} ({share:.1%})" in text


def test_boxes_lie_where_the_index_has_its_patches(cohort: Path) -> None:
    index, page = index_and_page(run_config(cohort))
    for number in range(len(index.slides)):
        for size in index.patch_sizes:
            rows = index.rows_of(number, size)
            expected = {(int(x), int(y), size) for x, y in zip(index.x[rows], index.y[rows], strict=True)}
            assert rectangles(page.shapes[f"slide-{number}", f"size-{size}"]) == expected


def test_boxes_of_a_coarser_resolution_cover_level_0_pixels(tmp_path: Path) -> None:
    for n in range(2):
        tissue_slide(tmp_path / f"{n}.png", 300, 260)
    manifest(tmp_path, "0.png,,,,train,0.25", "1.png,,,,val,0.25", header="slide,annotation,patient,centre,split,mpp")
    settings = {"resolution": {"mpp": 0.5}, "min_tissue_fraction": 0.0}
    _, page = index_and_page(run_config(tmp_path, sizes=(64,), index=settings))
    assert rectangles(page.shapes["slide-0", "size-64"]) == {(x, y, 128) for x in (0, 128) for y in (0, 128)}
    assert "0.5 um/px, 1/2 of full size" in page.sections["slide-0"]


def test_thumbnails_have_the_shape_of_their_slide(tmp_path: Path) -> None:
    sizes = [(2600, 700), (150, 1230)]
    for n, size in enumerate(sizes):
        tissue_slide(tmp_path / f"{n}.png", *size)
    manifest(tmp_path, "0.png,,,,train", "1.png,,,,val")
    _, page = index_and_page(run_config(tmp_path, sizes=(64,)))
    thumbnails = [a["src"] for a in page.all("img") if a["alt"].startswith("Thumbnail")]
    for (width, height), uri in zip(sizes, thumbnails, strict=True):
        found = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
        assert max(found.size) <= 1000
        assert found.width * height == pytest.approx(found.height * width, rel=0.01)


def test_what_was_drawn_and_passed_over_is_told(cohort: Path) -> None:
    asap(cohort / "0.xml", ("_0", square(64, 64, 64)), ("spam", square(0, 0, 9)))
    config = run_config(cohort)
    config = config.model_copy(update={"data": config.data.model_copy(update={"skip_groups": ("spam",)})})
    index, page = index_and_page(config)
    assert "_0 (1)" in page.sections["slide-0"] and "spam" in page.sections["slide-0"].partition("Passed over")[2]
    assert any("passed over" in line and "a.png" in line for line in remarks(index, config))
    assert not any(a["class"] == f"layer label-{IGNORE_LABEL}" for a in page.all("g")[:5])
    assert any(a["class"] == f"layer label-{IGNORE_LABEL}" for a in page.all("g"))


def test_slides_that_cannot_be_read_are_listed_first(cohort: Path) -> None:
    (cohort / "a.png").write_bytes(b"no image")
    config = run_config(cohort, index={"max_unreadable_fraction": 0.2})
    index, page = index_and_page(config)
    assert "Cannot be read" in remarks(index, config)[0] and "a.png" in remarks(index, config)[0]
    assert "slide-0" not in page.ids and "a.png" in page.sections["slides"]
    with pytest.raises(DataError, match=r"slide 'a' has no patches: .*a\.png: cannot be opened"):
        find_slide(index, "a")


def test_a_slide_that_is_damaged_after_indexing_is_told_in_its_place(cohort: Path) -> None:
    config, path = run_config(cohort), cohort / "run" / "index.parquet"
    index = build_index(config, path)
    (cohort / "a.png").write_bytes(b"no image")
    page = Page(write_page(index, config, path).read_text())
    assert "cannot be opened" in page.sections["slide-0"] and "Contact sheet" in page.sections["slide-1"]


def test_annotated_slides_without_positive_patches_and_classes_without_patches_are_remarked(cohort: Path) -> None:
    asap(cohort / "1.xml", ("_2", square(64, 64, 64)))
    config = run_config(cohort)
    index, _ = index_and_page(config)
    found = "\n".join(remarks(index, config))
    assert "1 slide with an annotation but no positive patch: b.png" in found
    assert "In no training patch: stroma" in found and "In no validation patch: stroma" in found


def test_one_slide_is_found_by_name_stem_or_path_and_drawn_alone(cohort: Path) -> None:
    config = run_config(cohort)
    index, page = index_and_page(config, slide="c")
    assert [a["id"] for a in page.all("section") if "id" in a] == ["slides", "slide-2"]
    assert (config.output / "inspect-c.html").exists() and all(r.slide.name in page.text for r in index.slides)
    assert find_slide(index, "c.png") == find_slide(index, str(cohort / "c.png")) == 2


def test_a_misspelt_slide_gets_the_nearest_name(tmp_path: Path) -> None:
    for name in ("tumor_001.png", "normal_002.png"):
        tissue_slide(tmp_path / name)
    (tmp_path / "x").mkdir()
    tissue_slide(tmp_path / "x" / "normal_002.png")
    manifest(tmp_path, "tumor_001.png,,,,train", "normal_002.png,,,,val", "x/normal_002.png,,,,val")
    index, _ = index_and_page(run_config(tmp_path))
    with pytest.raises(DataError, match="no slide 'tumr_001'") as error:
        find_slide(index, "tumr_001")
    assert error.value.fix == "did you mean 'tumor_001.png'?"
    with pytest.raises(DataError, match="2 slides are called 'normal_002'"):
        find_slide(index, "normal_002")


def test_few_slides_are_spread_over_the_splits_and_the_others_are_counted(cohort: Path) -> None:
    index, page = index_and_page(run_config(cohort, split={"val_fraction": 0.5}), max_slides=3)
    shown = [int(i.removeprefix("slide-")) for i in page.ids if re.fullmatch(r"slide-\d+", i)]
    assert sorted(index.slides[n].split for n in shown) == ["test", "train", "val"]
    assert "3 slides drawn below, 2 are not" in page.sections["slides"]
    assert all(r.slide.name in page.sections["slides"] for r in index.slides)
    assert spread_over_splits(index, 99) == [0, 1, 2, 3, 4] and spread_over_splits(index, 0) == []


def test_thousands_of_patches_are_drawn_as_density(tmp_path: Path) -> None:
    for n in range(2):
        tissue_slide(tmp_path / f"{n}.png", 1800, 1792)
    manifest(tmp_path, "0.png,,,,train", "1.png,,,,val")
    config = run_config(tmp_path, sizes=(32,), index={"min_tissue_fraction": 0.0})
    _, page = index_and_page(config)
    assert "32 px: 3,136 patches, drawn as density" in page.sections["slide-0"]
    assert not page.shapes["slide-0", "size-32"] and len(page.html) < 1e6


def test_density_of_a_grid_is_even() -> None:
    points = np.array([(x, y) for x in range(0, 9000, 30) for y in range(0, 6000, 30)])
    shares, cell = density(points, 30, (9011, 6010))
    assert cell == 60 and shares.shape == (101, 151)
    assert (shares[:100, :150] == 1).all() and shares[100:].sum() == shares[:, 150:].sum() == 0


def test_outlines_of_labels_run_along_pixel_borders() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 10:20], labels[:, 25:] = 1, 2
    rings = label_rings(labels)
    assert set(rings) == {1, 2} and [len(r) for r in rings.values()] == [1, 1]
    (square_ring,), (edge_ring,) = rings[1], rings[2]
    assert square_ring.min(axis=0).tolist() == [10, 5] and square_ring.max(axis=0).tolist() == [20, 15]
    assert edge_ring.min(axis=0).tolist() == [25, 0] and edge_ring.max(axis=0).tolist() == [30, 20]


shares_of_patches = arrays(
    np.float32, st.tuples(st.integers(0, 40), st.just(4)), elements=st.sampled_from([0, 0.005, 0.2])
)


@given(shares_of_patches, st.integers(1, 12), st.integers(0, 99))
def test_contact_sheets_show_every_class_and_both_sides(fractions: np.ndarray, count: int, seed: int) -> None:
    rows = contact_rows(fractions, count, 0.01, np.random.default_rng(seed))
    assert len(set(rows.tolist())) == len(rows) == min(len(fractions), max(count, len(rows)))
    assert len(rows) <= max(count, fractions.shape[1])
    present = fractions[:, 1:].max(axis=0, initial=0) > 0
    assert (fractions[rows, 1:].max(axis=0, initial=0) > 0).tolist() == present.tolist()
    sides = set(is_positive(fractions, 0.01).tolist())
    if count >= fractions.shape[1] + 1:
        assert set(is_positive(fractions[rows], 0.01).tolist()) == sides
    np.testing.assert_array_equal(rows, contact_rows(fractions, count, 0.01, np.random.default_rng(seed)))


def run_command(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(a) for a in arguments]))


def test_command_builds_the_index_once_and_says_where_the_page_is(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = cohort / "run.yaml"
    file.write_text(run_config(cohort).model_dump_json())
    run_command(file)
    built = (cohort / "run" / "index.parquet").stat().st_mtime_ns
    assert f"page: {cohort / 'run' / 'inspect.html'}" in capsys.readouterr().out
    run_command(file, "--max-slides", 1, "-o", cohort / "pages" / "one.html")
    assert (cohort / "run" / "index.parquet").stat().st_mtime_ns == built
    assert (cohort / "pages" / "one.html").exists()
    with pytest.raises(WidefieldError, match="cannot be written"):
        run_command(file, "-o", file / "page.html")


def test_pages_are_the_same_to_the_byte_and_do_not_need_the_kept_masks(cohort: Path) -> None:
    config, path = run_config(cohort), cohort / "run" / "index.parquet"
    index = build_index(config, path)
    first = write_page(index, config, path, cohort / "1.html").read_bytes()
    for part in (cohort / "run" / "index.parquet.parts").iterdir():
        part.unlink()
    assert write_page(index, config, path, cohort / "2.html").read_bytes() == first


def test_real_images_make_a_page_of_few_megabytes(fixtures: Path, tmp_path: Path) -> None:
    images = sorted((fixtures / "seg" / "images").glob("*.png"))[:3]
    rows = [
        f"{i},{fixtures / 'seg' / 'masks' / i.name},,,{s}"
        for i, s in zip(images, ("train", "train", "val"), strict=True)
    ]
    manifest(tmp_path, *rows)
    config = run_config(tmp_path, sizes=(256, 512), index={"min_tissue_fraction": 0.0})
    index, page = index_and_page(config)
    assert len(page.html) < 3e6 and len(index.infos) == 3
    assert sum(a["class"] == "layer label-2" for a in page.all("g")) == 3
