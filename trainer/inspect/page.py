"""The whole page: what is odd, the data set in figures, the list of slides, and the slides that are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trainer.config.schema import IGNORE_LABEL, Config
from trainer.inspect.colours import SPLIT_COLOURS
from trainer.inspect.counts import count, passed_over, plural
from trainer.inspect.markup import Html, document, join, swatch, table, tag
from trainer.inspect.remarks import remarks
from trainer.inspect.settings import settings
from trainer.inspect.slide_section import share_bar, split_badge
from trainer.inspect.style import style_sheet
from trainer.inspect.viewer import anchor
from trainer.patches.index import PatchIndex
from trainer.slides.dataset import SPLITS


def page(index: PatchIndex, config: Config, sections: Iterable[Html], shown: Sequence[int]) -> Html:
    """The page as one self-contained file.

    Args:
      sections: what `slide_section` gives for each of `shown`, positions in `index.slides`.
    """
    labels = [*range(1, len(index.class_names)), IGNORE_LABEL]
    return document(
        f"{config.name}: slides and patches",
        style_sheet(labels, index.patch_sizes),
        _header(index, config),
        tag(
            "main",
            _remarks(index, config),
            tag("div", _figures(index, config), settings(config), class_="halves"),
            _slides(index, config, shown),
            *sections,
        ),
    )


def _header(index: PatchIndex, config: Config) -> Html:
    used = [s for s in index.slides if s.split in SPLITS]
    splits = ", ".join(f"{n} {name}" for name in SPLITS if (n := sum(s.split == name for s in used)))
    lead = f"{plural(len(index.slides), 'slide')} ({splits}), {plural(len(index), 'patch')}"
    return tag("header", tag("h1", config.name), tag("p", f"{lead}. {config.data.path}", class_="lead"))


def _remarks(index: PatchIndex, config: Config) -> Html:
    found = remarks(index, config)
    title = tag("h2", "Worth a look")
    if not found:
        return tag(
            "section", title, tag("p", "Nothing in the index stands out. Now compare outlines and tissue below.")
        )
    return tag("section", title, tag("ul", *(tag("li", text) for text in found), class_="warn"))


def _figures(index: PatchIndex, config: Config) -> Html:
    """Patches by size and split, and what the colours mean."""
    rows = []
    for size in index.patch_sizes:
        for split in SPLITS:
            chosen = index.select(size, split)
            if len(chosen):
                found = count(index, chosen, config.sampling.min_tumour_fraction)
                slides = len(np.unique(index.slide[chosen]))
                positive = f"{found.positive:,} ({found.positive_share:.1%})"
                bar = share_bar(found.shares, index.class_names)
                rows.append((f"{size} px", split_badge(split), f"{slides:,}", f"{found.num:,}", positive, bar))
    head = ("size", "split", "slides", "patches", "positive", "mean class shares")
    title = tag("h2", "Patches")
    return tag("section", title, table(head, rows), _legend(index, config))


def _legend(index: PatchIndex, config: Config) -> Html:
    classes = (_key(f"label-{n}", name) for n, name in enumerate(index.class_names))
    splits = (_key(f"box {split}", f"{split} patch") for split in SPLIT_COLOURS)
    keys = (*classes, _key(f"label-{IGNORE_LABEL}", "ignored"), _key("tissue-line", "tissue mask"), *splits)
    share = config.sampling.min_tumour_fraction * 100
    note = (
        f"A patch is positive (marked corner) from {share:.3g}% of its pixels in any class but {index.class_names[0]}. "
        "The buttons above a slide show and hide what is drawn on it."
    )
    return join(tag("h3", "Colours"), tag("div", *keys, class_="legend"), tag("p", note, class_="note"))


def _key(css_class: str, words: str) -> Html:
    return tag("span", swatch(css_class), words)


def _slides(index: PatchIndex, config: Config, shown: Sequence[int]) -> Html:
    """One line for every slide of the data set, with links to those that are drawn."""
    drawn = set(shown)
    rows = [_slide_row(index, config, n, n in drawn) for n in range(len(index.slides))]
    head = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    num_hidden = len(index.slides) - len(drawn)
    hint = tag("code", "widefield inspect CONFIG --slide NAME"), " draws one, ", tag("code", "--max-slides N"), " more."
    words = f"{plural(len(drawn), 'slide')} drawn below, {num_hidden:,} are not: "
    more = tag("p", words, *hint, class_="note") if num_hidden else ""
    cells = table(head, ([row[name] for name in head] for row in rows))
    return tag("section", tag("h2", "Slides"), more, tag("div", cells, class_="long"), id="slides")


def _slide_row(index: PatchIndex, config: Config, number: int, is_shown: bool) -> dict[str, object]:
    """What the list says of one slide; '' where there is nothing to say."""
    record, info = index.slides[number], index.infos[number]
    name = tag("a", record.slide.name, href=f"#{anchor(number)}") if is_shown else record.slide.name
    per_size = {size: index.rows_of(number, size) for size in index.patch_sizes}
    everything = slice(per_size[index.patch_sizes[0]].start, per_size[index.patch_sizes[-1]].stop)
    found = count(index, everything, config.sampling.min_tumour_fraction)
    return {
        "slide": name,
        "split": split_badge(record.split),
        "patient": record.patient,
        "centre": record.centre,
        "size": f"{info.size[0]:,} x {info.size[1]:,}" if info.size != (0, 0) else "",
        "um/px": f"{info.mpp:.4g}" if info.mpp else "",
        **{f"{size} px": f"{rows.stop - rows.start:,}" for size, rows in per_size.items()},
        "positive": f"{found.positive:,}",
        "mean class shares": share_bar(found.shares, index.class_names) if found.num else "",
        "passed over": sum(passed_over(index, number).values()) or "",
    }
