"""The contact sheet of a slide: some of its patches with the outlines of their labels."""

from __future__ import annotations

from trainer.config.schema import Config
from trainer.inspect.collect import Cutout, SlideView
from trainer.inspect.counts import plural
from trainer.inspect.drawing import jpeg_uri, label_rings, rings_path
from trainer.inspect.markup import Html, join, tag
from trainer.inspect.viewer import outline
from trainer.patches.index import PatchIndex
from trainer.patches.sample import is_positive


def contact_sheet(view: SlideView, index: PatchIndex, config: Config) -> Html:
    """Patches by size, with the numbers that the thumbnail's marks carry."""
    numbered = list(enumerate(view.cutouts, 1))
    groups = []
    for size in index.patch_sizes:
        tiles = [_tile(n, c, index, config) for n, c in numbered if index.size[c.row] == size]
        if tiles:
            groups.append(join(tag("h4", f"{size} px"), tag("div", *tiles, class_="tiles")))
    drawn = (
        f"{plural(len(numbered), 'patch')}, drawn with the seed: one of each class, then positive and negative in turn"
    )
    note = tag("p", f"{drawn}. As the network sees them, before augmentation.", class_="note")
    return tag("details", tag("summary", "Contact sheet"), note, *groups, open="")


def _tile(number: int, cutout: Cutout, index: PatchIndex, config: Config) -> Html:
    row, side = cutout.row, cutout.labels.shape[0]
    fractions = index.label_fractions[row]
    positive = bool(is_positive(fractions[None], config.sampling.min_tumour_fraction)[0])
    named = zip(index.class_names, fractions, strict=True)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in named if share >= 0.005) or "ignored"
    place = f"x {index.x[row]:,}  y {index.y[row]:,}"
    alt = f"Patch {number}: {place}, {index.size[row]} px, {shares}"
    lines = (
        outline(rings_path(rings), f"tile-{row}-{label}", f"line label-{label}")
        for label, rings in label_rings(cutout.labels).items()
    )
    overlay = tag("svg", *lines, viewBox=f"0 0 {side} {side}", aria_hidden="true")
    picture = tag("img", src=jpeg_uri(cutout.image), alt=alt, width=side, height=side)
    sign = tag("b", number, class_="positive" if positive else "negative")
    words = join(tag("span", sign, " positive" if positive else " negative"), tag("span", place))
    tissue = f"tissue {index.tissue_fraction[row]:.0%}" if config.index.min_tissue_fraction else ""
    return tag(
        "figure",
        tag("div", picture, overlay, class_="stack"),
        tag("figcaption", words, tag("span", tissue), tag("span", shares)),
    )
