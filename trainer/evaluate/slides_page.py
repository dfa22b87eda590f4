"""The page of a set of scored slides: figures of the set, curves, and the slides, the worst first. No files."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from trainer.config.schema import IGNORE_LABEL
from trainer.evaluate.slide_curves import draw_froc, draw_roc
from trainer.inspect.counts import plural
from trainer.inspect.markup import Html, document, facts, join, table, tag
from trainer.inspect.slide_section import split_badge
from trainer.inspect.style import style_sheet

_TITLES = {"accuracy": "accuracy", "miou": "mIoU", "dice": "Dice", "auc": "AUC"}
_COUNTS = ("lesions", "lesions_found", "false_positives")


def slides_page(report: Mapping[str, Any], pictures: Sequence[Html]) -> Html:
    """One file that needs nothing beside it; links lead to the folders of the predictions.

    Args:
      report: of `report_of`, with `run` (name), `split` and `failed` (slide and why) added.
      pictures: of the first slides of the report, which are shown.
    """
    slides = report["slides"]
    return document(
        f"{report['run']}: whole slides",
        style_sheet([*range(1, len(report["classes"])), IGNORE_LABEL], ()),
        _header(report),
        tag(
            "main",
            _trained_on(slides),
            _failed(report["failed"]),
            tag("div", _pixels(report), _rules(report), class_="halves"),
            tag("div", _lesions(report["froc"]), _told_apart(report["slide_auc"]), class_="halves"),
            _centres(report["centres"]),
            _slides(slides, len(pictures)),
            *(_slide(n, row, picture) for n, (row, picture) in enumerate(zip(slides, pictures, strict=False))),
        ),
    )


def headlines(report: Mapping[str, Any]) -> list[str]:
    """The three figures that people ask for first, a line each, with their intervals."""
    pixels, auc, froc = report["pixels"], report["slide_auc"], report["froc"]
    pooled = ", ".join(
        f"{_TITLES[key]} {_with_interval(pixels['pooled'][key], pixels['pooled_interval'][key])}"
        for key in ("miou", "dice")
    )
    num_slides = f"{auc['with_tumour']} with tumour, {auc['without_tumour']} without"
    lesions = f"{plural(froc['lesions'], 'lesion')} on {plural(froc['slides'], 'slide')}"
    return [
        f"pixels of all slides: {pooled}",
        f"slide AUC: {_with_interval(auc['auc'], auc['interval'])} ({num_slides})",
        f"FROC score: {_with_interval(froc['score'], froc['interval'])} ({lesions})",
    ]


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """'0.912 (0.884 to 0.937)', or n/a."""
    return _number(value) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _header(report: Mapping[str, Any]) -> Html:
    lead = f"{plural(len(report['slides']), 'slide')} ({report['split']}), network {report['network'][:12]}"
    lines = (tag("li", line) for line in headlines(report))
    note = "In brackets: 95 % intervals, by drawing slides again."
    return tag(
        "header",
        tag("h1", f"{report['run']}: whole slides"),
        tag("p", lead, class_="lead"),
        tag("ul", *lines),
        tag("p", note, class_="note"),
    )


def _trained_on(slides: Sequence[Mapping[str, Any]]) -> Html:
    num = sum(row["trained_on"] for row in slides)
    if not num:
        return Html()
    words = f"{plural(num, 'slide')} of these took part in training: how new slides would fare is another question."
    return tag("section", tag("ul", tag("li", words), class_="warn"))


def _failed(failed: Sequence[Mapping[str, str]]) -> Html:
    if not failed:
        return Html()
    lines = (tag("li", f"{row['slide']}: {row['why']}") for row in failed)
    title = f"Left out: {plural(len(failed), 'slide')} that could not be scored"
    return tag("section", tag("h2", title), tag("ul", *lines, class_="warn"))


def _pixels(report: Mapping[str, Any]) -> Html:
    pixels = report["pixels"]
    pooled, interval, mean = (pixels[key] for key in ("pooled", "pooled_interval", "mean_over_slides"))
    rows = ((title, _with_interval(pooled[key], interval[key]), _number(mean[key])) for key, title in _TITLES.items())
    classes = ((n, _number(pooled["class_iou"][n]), _number(pooled["class_dice"][n])) for n in report["classes"])
    return tag(
        "section",
        tag("h2", "Pixels"),
        table(("score", "all pixels together", "mean over slides"), rows),
        tag("h3", "Classes, all pixels together"),
        table(("class", "IoU", "Dice"), classes),
        tag("p", f"{pooled['megapixels']:,.2f} Mpx are annotated and predicted.", class_="note"),
    )


def _rules(report: Mapping[str, Any]) -> Html:
    first, positives = report["classes"][0], " and ".join(report["positive_classes"])
    lines = [
        f"What counts as tumour: {positives}. A slide without an annotation is {first} all over.",
        f"Pixels count where they are annotated and predicted. Ignored areas never count. Where nothing was predicted "
        f"for lack of tissue, {first} does not count, and any other class counts as missed.",
        "Dice and AUC are those of the second of two classes; of more, Dice is the mean over all, AUC the mean over "
        "all but the first.",
        "Lesions are CAMELYON16's: annotated tumour less than 75 um apart is one, isolated tumour cells count for "
        "nothing; made from a mask of 8 um/px. A detection is the most probable pixel of a predicted region of tumour. "
        "In an ignored area it is left out.",
        "FROC score: the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per slide, over all slides.",
        "A slide's score is the highest probability of any detection, 0 without one.",
        "The worst slide is that with the lowest mIoU.",
    ]
    return tag("section", tag("h2", "How it was scored"), tag("ul", *(tag("li", line) for line in lines)))


def _lesions(froc: Mapping[str, Any]) -> Html:
    left_out = froc["without_mpp"]
    note = f"Left out, since their um/px are not known: {', '.join(left_out)}." if left_out else ""
    title = tag("h2", "Lesions (FROC)")
    if not froc["curve"]:
        return tag("section", title, tag("p", "n/a: no slide has a lesion to find."), tag("p", note, class_="note"))
    picture = _png(draw_froc(froc["curve"]["false_positives"], froc["curve"]["sensitivity"]), "FROC curve")
    head = ("false positives per slide", *(f"{n:g}" for n in froc["false_positives_per_slide"]), "mean")
    row = ("lesions found", *map(_number, froc["sensitivities"]), _number(froc["score"]))
    itc = froc["isolated_tumour_cells"]
    counted = f"{plural(froc['lesions'], 'lesion')} on {plural(froc['slides'], 'slide')}"
    counted += f"; {itc:,} more are isolated tumour cells and count for nothing." if itc else "."
    return tag("section", title, picture, table(head, [row]), tag("p", f"{counted} {note}", class_="note"))


def _told_apart(auc: Mapping[str, Any]) -> Html:
    title = tag("h2", "Slides with tumour (ROC)")
    for kind in ("with", "without"):
        if not auc[f"{kind}_tumour"]:
            return tag("section", title, tag("p", f"AUC n/a: no slides {kind} tumour."))
    picture = _png(draw_roc(auc["curve"]["false_positive_rate"], auc["curve"]["sensitivity"]), "ROC curve")
    words = f"AUC {_with_interval(auc['auc'], auc['interval'])}; {auc['with_tumour']:,} slides with tumour, "
    return tag("section", title, picture, tag("p", f"{words}{auc['without_tumour']:,} without."))


def _centres(centres: Sequence[Mapping[str, Any]]) -> Html:
    if not any(row["centre"] for row in centres):
        return Html()
    head = ("centre", "slides", "with tumour", "slide AUC", "accuracy", "mIoU", "Dice")
    rows = (
        (
            row["centre"] or "not known",
            f"{row['slides']:,}",
            f"{row['tumour_slides']:,}",
            *(_number(row[key]) for key in ("auc", "accuracy", "miou", "dice")),
        )
        for row in centres
    )
    note = "Accuracy, mIoU and Dice are means over slides."
    return tag("section", tag("h2", "Centres"), table(head, rows), tag("p", note, class_="note"))


def _slides(slides: Sequence[Mapping[str, Any]], num_shown: int) -> Html:
    named = ("slide", "split", "centre", "tumour", "score", "lesions", "found", "false positives")
    head = (*named, *_TITLES.values(), "Mpx")
    rows = (_slide_row(row, _anchor(n) if n < num_shown else None) for n, row in enumerate(slides))
    title = f"Slides, the worst first; {num_shown} of them are shown below"
    return tag("section", tag("h2", title), tag("div", table(head, rows), class_="long"), id="slides")


def _slide_row(row: Mapping[str, Any], anchor: str | None) -> tuple[object, ...]:
    link = f"#{anchor}" if anchor else _file(row, "overview.png")
    return (
        tag("a", row["slide"], href=link),
        split_badge(row["split"]),
        row["centre"],
        "yes" if row["has_tumour"] else "no",
        _number(row["score"]),
        *("n/a" if row[key] is None else f"{row[key]:,}" for key in _COUNTS),
        *(_number(row[key]) for key in _TITLES),
        f"{row['megapixels']:,.2f}",
    )


def _slide(number: int, row: Mapping[str, Any], picture: Html) -> Html:
    files = ("overview.png", "regions.geojson", "classes.tif", "summary.json")
    links = (join(tag("a", name, href=_file(row, name)), " ") for name in files)
    lesions = "um/px not known"
    if row["lesions"] is not None:
        lesions = f"{row['lesions_found']:,} of {row['lesions']:,} found"
    about = facts(
        [
            ("patient", row["patient"]),
            ("centre", row["centre"]),
            ("tumour", "yes" if row["has_tumour"] else "no"),
            ("score", _number(row["score"])),
            ("lesions", lesions),
            ("isolated tumour cells", row["isolated_tumour_cells"] or ""),
            ("false positives", row["false_positives"]),
            *((_TITLES[key], _number(row[key])) for key in _TITLES),
            ("pixels", f"{row['megapixels']:,.2f} Mpx"),
            ("files", join(*links)),
        ]
    )
    notes = tag("ul", *(tag("li", note) for note in row["notes"]), class_="warn") if row["notes"] else ""
    legend = "Broken black lines: annotated; grey: ignored. In the colours of the classes: predicted."
    left = tag("div", picture, tag("p", legend, class_="note"))
    back = tag("p", tag("a", "back to the list", href="#slides"), class_="back")
    title = tag("h2", row["slide"], " ", split_badge(row["split"]))
    columns = tag("div", left, tag("div", about, notes), class_="columns")
    return tag("section", title, columns, back, id=_anchor(number), class_="slide")


def _anchor(number: int) -> str:
    return f"slide-{number}"


def _file(row: Mapping[str, Any], name: str) -> str:
    """A link that means a file, whatever the folder is called."""
    return quote(f"{row['folder']}/{name}")


def _png(content: bytes, words: str) -> Html:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return tag("div", tag("img", src=source, alt=words), class_="stack", style="max-width: 520px")
