"""One slide on the page: its thumbnail, its facts, its contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.config.schema import Config
from trainer.inspect.collect import SlideView
from trainer.inspect.colours import SPLIT_COLOURS
from trainer.inspect.contact_sheet import contact_sheet
from trainer.inspect.counts import count, passed_over
from trainer.inspect.markup import Html, facts, join, table, tag
from trainer.inspect.viewer import anchor, viewer
from trainer.patches.index import PatchIndex


def slide_section(view: SlideView, index: PatchIndex, config: Config) -> Html:
    """All about one slide.

    Args:
      view: what `collect` read.
      index: with the slide's patches.
    Returns:
      a <section>; its drawings need the page's style sheet.
    """
    record = index.slides[view.number]
    title = tag("h2", record.slide.name, " ", split_badge(record.split))
    body = tag("div", viewer(view, index, config), _facts(view, index, config), class_="columns")
    back = tag("p", tag("a", "back to the list", href="#slides"), class_="back")
    return tag("section", title, body, contact_sheet(view, index, config), back, id=anchor(view.number), class_="slide")


def fault_section(number: int, index: PatchIndex, fault: str) -> Html:
    """In the place of a slide that could not be read any more: why."""
    title = tag("h2", index.slides[number].slide.name, " ", split_badge(index.slides[number].split))
    return tag("section", title, tag("ul", tag("li", fault), class_="warn"), id=anchor(number), class_="slide")


def split_badge(split: str) -> Html:
    return tag("span", split or "none", class_=f"badge {split if split in SPLIT_COLOURS else 'unused'}")


def _facts(view: SlideView, index: PatchIndex, config: Config) -> Html:
    record, info = index.slides[view.number], index.infos[view.number]
    width, height = info.size
    extent = f" ({width * info.mpp / 1000:.1f} x {height * info.mpp / 1000:.1f} mm)" if info.mpp else ""
    resolution = f"{info.mpp * info.downsample:.4g} um/px, " if info.mpp else ""
    levels = ", ".join(f"{w:,} x {h:,} (1/{d:.4g})" for w, h, d in view.levels)
    about = facts([
        ("patient", record.patient),
        ("centre", record.centre),
        ("size", f"{width:,} x {height:,} px{extent}"),
        ("resolution", f"{info.mpp:.4g} um/px" if info.mpp else "not known"),
        ("patches at", resolution + (f"1/{info.downsample:.4g} of full size" if info.downsample != 1 else "full size")),
        ("format", view.format),
        ("levels", levels),
        ("tissue", f"{view.tissue[1]:.1%} of the slide" if view.tissue else "no mask asked for"),
        ("slide", tag("code", record.slide)),
    ])  # fmt: skip
    least = config.index.min_tissue_fraction
    note = tag("p", f"left out: less than {least:.0%} tissue", class_="note") if least else ""
    parts = [about, tag("h3", "Patches"), _patch_table(view, index, config), note, tag("h3", "Annotation")]
    return tag("div", *parts, _annotation(view.number, index), class_="facts")


def _patch_table(view: SlideView, index: PatchIndex, config: Config) -> Html:
    dropped = index.infos[view.number].num_dropped or {}
    rows = []
    for size in index.patch_sizes:
        found = count(index, index.rows_of(view.number, size), config.sampling.min_tumour_fraction)
        numbers = (f"{n:,}" for n in (found.num, found.positive, dropped.get(str(size), 0)))
        rows.append((f"{size} px", *numbers, share_bar(found.shares, index.class_names)))
    return table(("size", "patches", "positive", "left out", "mean class shares"), rows)


def share_bar(shares: np.ndarray, class_names: Sequence[str]) -> Html:
    """Class shares as a bar, with the figures beside it; that of the first class only where there is no other."""
    parts = (
        tag("span", class_=f"part label-{label}", style=f"width: {share:.2%}", title=f"{name} {share:.1%}")
        for label, (name, share) in enumerate(zip(class_names, shares, strict=True))
        if share > 0
    )
    return tag("span", tag("span", *parts, class_="bar"), tag("small", _words(shares, class_names)), class_="shares")


def _words(shares: np.ndarray, class_names: Sequence[str]) -> str:
    named = list(zip(class_names, shares, strict=True))
    return ", ".join(f"{n} {s:.1%}" for n, s in named[1:] if s >= 0.0005) or f"{class_names[0]} {shares[0]:.1%}"


def _annotation(number: int, index: PatchIndex) -> Html:
    """What was drawn, what it covers, what was passed over and why."""
    record, info = index.slides[number], index.infos[number]
    if record.annotation is None:
        return tag("p", f"None: all of the slide is {index.class_names[0]}.")
    found = info.annotation or {}
    groups = ", ".join(f"{name} ({num:,})" for name, num in (found.get("groups") or {}).items())
    known = found.get("class_areas_px") or {}
    areas = {name: known.get(name) for name in index.class_names} | {"ignored": found.get("ignored_area_px")}
    pairs = [
        ("file", tag("code", record.annotation)),
        ("kind", found.get("source")),
        ("groups drawn", groups),
        *((f"area: {name}", _area(px, info.mpp)) for name, px in areas.items() if px),
    ]
    skipped = [tag("li", f"{num:,} x {reason}") for reason, num in passed_over(index, number).items()]
    lines = join(tag("h4", "Passed over"), tag("ul", *skipped, class_="warn")) if skipped else ""
    return join(facts(pairs), lines)


def _area(area_px: float, mpp: float | None) -> str:
    return f"{area_px * mpp**2 / 1e6:,.3g} mm²" if mpp else f"{area_px / 1e6:,.3g} Mpx"
