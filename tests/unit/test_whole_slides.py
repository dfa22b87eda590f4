"""Whole slides scored against their annotations: every figure is worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_slides import asap, data_config, square, tissue_slide

from trainer.errors import PredictionError
from trainer.evaluate.slide_picture import slide_picture
from trainer.evaluate.slides_page import headlines, slides_page
from trainer.evaluate.slides_report import report_of, worst_first
from trainer.evaluate.whole_slides import SlideResult
from trainer.infer.prediction import score_prediction
from trainer.infer.pyramid import write_pyramid
from trainer.slides.dataset import SlideRecord

CLASSES = data_config().class_names
"""normal, stroma, tumour."""
DOWNSAMPLE = 4.0
WIDTH, HEIGHT = 300, 200
"""Of the maps, at 8 um/px: the resolution of the mask that lesions are made from."""
PALETTE = [(255, 255, 255), (0, 0, 255), (255, 0, 0)]


def write_prediction(
    folder: Path, classes: np.ndarray, tumour: np.ndarray, lesions: list[dict[str, Any]], mpp: float | None = 8.0
) -> Path:
    """What `widefield predict` would have written of these maps."""
    folder.mkdir(parents=True)
    height, width = classes.shape
    maps = {"classes": classes, "probability-stroma": np.zeros_like(classes), "probability-tumour": tumour}
    for name, pixels in maps.items():
        write_pyramid(
            folder / f"{name}.tif",
            lambda x, y, w, h, pixels=pixels: pixels[y : y + h, x : x + w],
            width,
            height,
            mpp=mpp,
            colours=PALETTE if name == "classes" else None,
        )
    summary = {"mpp": mpp, "downsample": DOWNSAMPLE, "lesions": lesions, "holes": [], "notes": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    made_from = {"network": "abc", "slide_hash": f"hash of {folder.name}"}
    (folder / "map.json").write_text(json.dumps({"made_from": made_from, "holes": []}))
    Image.new("RGB", (width, height + 40)).save(folder / "overview.png")
    return folder


def lesion(name: str, map_x: float, map_y: float, probability: float) -> dict[str, Any]:
    return {"class": name, "x": map_x * DOWNSAMPLE, "y": map_y * DOWNSAMPLE, "peak_probability": probability}


def on_map(map_x: float, map_y: float, map_side: float) -> list[tuple[float, float]]:
    return list(square(map_x * DOWNSAMPLE, map_y * DOWNSAMPLE, map_side * DOWNSAMPLE))


def slide(path: Path) -> Path:
    return tissue_slide(path, int(WIDTH * DOWNSAMPLE), int(HEIGHT * DOWNSAMPLE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def mixed(folder: Path) -> SlideResult:
    """Two lesions, of which one is found; isolated tumour cells where nothing is predicted; an ignored area."""
    truth = asap(
        folder / "mixed.xml",
        ("Tumor", on_map(20, 20, 50)),  # 400 um, found
        ("Tumor", on_map(200, 20, 50)),  # missed
        ("Tumor", on_map(100, 150, 10)),  # 80 um: isolated tumour cells
        ("blur", on_map(250, 150, 30)),
    )
    classes, tumour = np.full((HEIGHT, WIDTH), 255, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[:120] = 0
    classes[20:70, 20:70], tumour[20:70, 20:70] = 2, 204
    tumour[20:70, 200:250] = 51
    classes[90:100, 130:140], tumour[90:100, 130:140] = 2, 153  # a false positive
    classes[150:180, 250:280], tumour[150:180, 250:280] = 2, 230  # ignored
    found = [
        lesion("tumour", 45.5, 45.5, 0.8),
        lesion("tumour", 265.5, 165.5, 0.9),
        lesion("tumour", 135.5, 95.5, 0.6),
        lesion("stroma", 10.5, 10.5, 0.95),
    ]
    prediction = write_prediction(folder / "run" / "slides" / "mixed", classes, tumour, found)
    record = SlideRecord(slide(folder / "mixed.png"), truth, centre="0", split="test")
    return score_prediction(record, prediction, data_config(), ("tumour",))


@pytest.fixture(scope="module")
def normal(folder: Path) -> SlideResult:
    """No annotation, and nothing found."""
    zeros = np.zeros((HEIGHT, WIDTH), np.uint8)
    prediction = write_prediction(folder / "run" / "slides" / "normal", zeros, zeros, [])
    record = SlideRecord(slide(folder / "normal.png"), None, centre="0", split="test")
    return score_prediction(record, prediction, data_config(), ("tumour",))


@pytest.fixture(scope="module")
def missed(folder: Path) -> SlideResult:
    """All of it is one lesion, nothing is found, and nobody knows its um/px."""
    zeros = np.zeros((HEIGHT, WIDTH), np.uint8)
    prediction = write_prediction(folder / "run" / "slides" / "missed", zeros, zeros, [], mpp=None)
    truth = asap(folder / "missed.xml", ("Tumor", [(0, 0), (1200, 0), (1200, 800), (0, 800)]))
    record = SlideRecord(slide(folder / "missed.png"), truth, centre="1", split="test")
    return score_prediction(record, prediction, data_config(), ("tumour",))


@pytest.fixture(scope="module")
def report(folder: Path, mixed: SlideResult, normal: SlideResult, missed: SlideResult) -> dict[str, Any]:
    results = worst_first([mixed, normal, missed])
    found = report_of(results, CLASSES, ("tumour",), folder / "run", {"hash of mixed"}, seed=0, resamples=200)
    return {"run": "a run", "split": "test", "failed": [], **found}


def test_annotated_and_predicted_pixels_count_and_tumour_that_nobody_looked_at_is_missed(mixed: SlideResult) -> None:
    # 120 rows are predicted: 2 x 50 x 50 tumour of which half is found, 10 x 10 px taken for tumour; and 10 x 10 px of
    # tumour where nothing is predicted
    band = 120 * WIDTH
    expected = [[band - 5000 - 100, 0, 100], [0, 0, 0], [2500 + 100, 0, 2500]]
    np.testing.assert_array_equal(mixed.sums.confusion, expected)
    assert mixed.sums.pixels == band + 100


def test_a_map_of_many_blocks_is_scored_whole(monkeypatch: pytest.MonkeyPatch, mixed: SlideResult) -> None:
    monkeypatch.setattr("trainer.evaluate.whole_slides._BLOCK_PX", 70)
    again = score_prediction(mixed.record, mixed.folder, data_config(), ("tumour",))
    np.testing.assert_array_equal(again.sums.confusion, mixed.sums.confusion)
    np.testing.assert_array_equal(again.sums.histogram, mixed.sums.histogram)


def test_lesions_are_found_or_missed_and_ignored_areas_and_other_classes_are_neither(mixed: SlideResult) -> None:
    assert mixed.hits
    np.testing.assert_array_equal(mixed.hits.lesions, [0.8, 0])
    np.testing.assert_array_equal(mixed.hits.false_positives, [0.6])
    assert (mixed.num_itc, mixed.score, mixed.has_tumour) == (1, 0.8, True)


def test_a_slide_without_annotation_is_the_first_class_all_over(normal: SlideResult) -> None:
    assert normal.sums.confusion[0, 0] == normal.sums.pixels == WIDTH * HEIGHT
    assert normal.hits and (len(normal.hits.lesions), normal.score, normal.has_tumour) == (0, 0.0, False)


def test_the_figures_of_a_slide(report: dict[str, Any]) -> None:
    row = next(row for row in report["slides"] if row["slide"] == "mixed.png")
    hit, missed, false, true = 2500, 2600, 100, 30900
    assert row["accuracy"] == pytest.approx((hit + true) / (hit + missed + false + true))
    iou, first_iou = hit / (hit + missed + false), true / (true + missed + false)
    assert row["miou"] == pytest.approx((iou + first_iou) / 2)
    assert row["class_dice"]["tumour"] == pytest.approx(2 * hit / (2 * hit + missed + false))
    # of pairs of a tumour pixel and another one: 2500 px at 204 above all; 2500 at 51 above all but the 100 at 153; 100
    # at 0 below these and equal to the others
    negatives = true + false
    assert row["auc"] == pytest.approx((2500 * negatives + 2500 * true + 100 * true / 2) / (5100 * negatives))
    assert (row["lesions"], row["lesions_found"], row["false_positives"], row["isolated_tumour_cells"]) == (2, 1, 1, 1)
    assert row["folder"] == "slides/mixed"


def test_the_figures_of_the_set(report: dict[str, Any]) -> None:
    assert [row["slide"] for row in report["slides"]] == ["missed.png", "mixed.png", "normal.png"]
    pixels, hit = report["pixels"], 2500 + 30900 + 60000
    assert pixels["pooled"]["accuracy"] == pytest.approx(hit / (36100 + 2 * 60000))
    assert pixels["mean_over_slides"]["accuracy"] == pytest.approx((33400 / 36100 + 1 + 0) / 3)
    low, high = pixels["pooled_interval"]["accuracy"]
    assert 0 < low < pixels["pooled"]["accuracy"] < high < 1
    # mixed 0.8 above normal 0; missed 0 equal to it
    auc = report["slide_auc"]
    assert (auc["auc"], auc["with_tumour"], auc["without_tumour"]) == (0.75, 2, 1)
    # of two slides: one of two lesions is found before the first false positive
    froc = report["froc"]
    assert (froc["score"], froc["sensitivities"], froc["lesions"], froc["slides"]) == (0.5, [0.5] * 6, 2, 2)
    assert froc["curve"]["false_positives"] == [0, 0, 0.5]
    assert froc["without_mpp"] == ["missed.png"]
    assert [(row["centre"], row["slides"], row["auc"]) for row in report["centres"]] == [("0", 2, 1.0), ("1", 1, None)]
    assert [row["slide"] for row in report["slides"] if row["trained_on"]] == ["mixed.png"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_slides_of_one_kind_have_no_auc_and_without_lesions_there_is_no_froc(
    folder: Path, normal: SlideResult, missed: SlideResult
) -> None:
    for results, words in (([normal], "no slides with tumour"), ([missed], "no slides without tumour")):
        found = report_of(results, CLASSES, ("tumour",), folder / "run", (), seed=0, resamples=20)
        report = {"run": "a run", "split": "test", "failed": [], **found}
        assert report["slide_auc"]["auc"] is report["froc"]["score"] is None
        page = slides_page(report, [])
        assert f"AUC n/a: {words}" in page and "n/a: no slide has a lesion to find" in page
        assert "slide AUC: n/a" in headlines(report)[1]


def test_the_page_shows_the_worst_slide_first_and_links_to_its_files(
    report: dict[str, Any], mixed: SlideResult, missed: SlideResult
) -> None:
    pictures = [slide_picture(r.record, r.folder, data_config()) for r in (missed, mixed)]
    assert all("data:image/jpeg;base64," in picture for picture in pictures)
    failed = [{"slide": "<b>.tif", "why": "is cut short"}]
    page = slides_page({**report, "failed": failed}, pictures)
    assert (
        page.index('id="slide-0"') < page.index("missed.png", page.index('id="slide-0"')) < page.index('id="slide-1"')
    )
    assert 'id="slide-2"' not in page and 'href="slides/normal/overview.png"' in page
    assert page.count("data:image/png;base64,") == 2, "both curves"
    assert "&lt;b&gt;.tif: is cut short" in page and "<script" not in page
    assert "um/px are not known: missed.png" in page and "1 slide of these took part in training" in page
    assert headlines(report)[2].startswith("FROC score: 0.500 (")


def test_without_its_overview_a_slide_says_why_it_has_no_picture(mixed: SlideResult, tmp_path: Path) -> None:
    assert "no picture" in slide_picture(mixed.record, tmp_path, data_config())


@pytest.mark.parametrize("harm", ["gone", "cut", "other"])
def test_files_of_a_prediction_that_cannot_be_used_are_named(tmp_path: Path, mixed: SlideResult, harm: str) -> None:
    zeros = np.zeros((HEIGHT, WIDTH), np.uint8)
    prediction = write_prediction(tmp_path / "p", zeros, zeros, [])
    file = prediction / "probability-tumour.tif"
    if harm == "gone":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:40])
    else:
        Image.new("L", (WIDTH, HEIGHT)).save(file)
    with pytest.raises(PredictionError, match=r"probability-tumour\.tif: cannot be read"):
        score_prediction(mixed.record, prediction, data_config(), ("tumour",))
    (prediction / "summary.json").write_text("{}")
    with pytest.raises(PredictionError, match="does not hold a whole prediction"):
        score_prediction(mixed.record, prediction, data_config(), ("tumour",))
