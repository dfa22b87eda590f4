"""A slide's thumbnail with everything that can be drawn over it; each layer can be switched off without a script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.config.schema import IGNORE_LABEL, Config
from trainer.inspect.collect import SlideView
from trainer.inspect.colours import SPLIT_COLOURS
from trainer.inspect.drawing import (
    boxes_path,
    density,
    flags_path,
    jpeg_uri,
    largest,
    rings_path,
    shade_uri,
)
from trainer.inspect.markup import Html, join, swatch, tag
from trainer.patches.index import PatchIndex
from trainer.patches.sample import is_positive
from trainer.slides.geometry import l0_length

MAX_BOXES = 3000
"""Patches of one size and slide above which their density is drawn: single boxes could not be told apart."""
MAX_RINGS = 4000
"""Outlines of one kind; smaller ones than the largest so many are left out (specks of a mask)."""


@dataclass(frozen=True)
class Layer:
    """Something that can be switched on and off: the name in class attributes, words for people, and its SVG."""

    name: str
    title: object
    shape: Html
    is_on: bool = True
    note: str = ""


def anchor(number: int) -> str:
    return f"slide-{number}"


def viewer(view: SlideView, index: PatchIndex, config: Config) -> Html:
    """The thumbnail with its switches; outlines lie over boxes."""
    width, height = index.infos[view.number].size
    outlines, boxes = [*_tissue_layer(view), *_label_layers(view, index)], list(_box_layers(view, index, config))
    marks = _mark_layer(view, index) if view.cutouts else []
    layers = [*outlines, *boxes, *marks]
    switches = (_switch(f"{anchor(view.number)}-{layer.name}", layer) for layer in layers)
    shapes = (tag("g", layer.shape, class_=f"layer {layer.name}") for layer in (*boxes, *outlines, *marks))
    name = index.slides[view.number].slide.name
    picture = tag("img", src=jpeg_uri(view.thumbnail), alt=f"Thumbnail of {name}", width=width, height=height)
    overlay = tag("svg", *shapes, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", aria_hidden="true")
    limit = f"max-width: min(100%, calc(85vh * {width / height:.4f}))"
    notes = (tag("p", layer.note, class_="note") for layer in layers if layer.note)
    return tag("div", *switches, tag("div", picture, overlay, class_="stack", style=limit), *notes, class_="viewer")


def _switch(name: str, layer: Layer) -> Html:
    """A checkbox before its label: the style sheet hides what an unchecked one names, without a script."""
    box = tag("input", type="checkbox", id=name, class_=f"switch {layer.name}", checked="" if layer.is_on else None)
    return join(box, tag("label", layer.title, for_=name))


def _tissue_layer(view: SlideView) -> list[Layer]:
    if view.tissue is None:
        return []
    rings, left_out = _bounded(view.tissue[0])
    shape = outline(rings_path(rings), f"tissue-{view.number}", "tissue-line", "pale")
    return [Layer("tissue", join(swatch("tissue-line"), "tissue mask"), shape, note=left_out and f"tissue: {left_out}")]


def _label_layers(view: SlideView, index: PatchIndex) -> list[Layer]:
    layers = []
    for label, all_rings in sorted(view.outlines.items()):
        if label != 0 and all_rings:
            rings, left_out = _bounded(all_rings)
            name, title = f"label-{label}", "ignored" if label == IGNORE_LABEL else index.class_names[label]
            shape = outline(rings_path(rings), f"area-{view.number}-{label}", f"line {name}")
            layers.append(Layer(name, join(swatch(name), title), shape, note=left_out and f"{title}: {left_out}"))
    return layers


def _bounded(rings: list[np.ndarray]) -> tuple[list[np.ndarray], str]:
    left_out = len(rings) - MAX_RINGS
    note = f"the smallest {left_out:,} outlines are not drawn" if left_out > 0 else ""
    return largest(rings, MAX_RINGS), note


def outline(path: str, name: str, css_class: str, casing: str = "") -> Html:
    """A path drawn twice, first as a wider dark (or pale) line, so that it shows on any background."""
    shape = tag("defs", tag("path", id=name, d=path, fill_rule="evenodd"))
    lines = (tag("use", href=f"#{name}", class_=css) for css in (f"casing {casing}", css_class))
    return join(shape, *lines)


def _box_layers(view: SlideView, index: PatchIndex, config: Config) -> Iterable[Layer]:
    """One layer per size, the largest one switched on."""
    split, info = index.slides[view.number].split, index.infos[view.number]
    for size in index.patch_sizes:
        rows = index.rows_of(view.number, size)
        points = np.stack([index.x[rows], index.y[rows]], axis=1)
        positive = is_positive(index.label_fractions[rows], config.sampling.min_tumour_fraction)
        side, is_dense = l0_length(size, info.downsample), len(points) > MAX_BOXES
        draw = _shade if is_dense else _boxes
        shape = join(*(draw(points[positive == p], side, info.size, split, p) for p in (False, True)))
        note = f"{size} px: {len(points):,} patches, drawn as density, positive ones darker" if is_dense else ""
        title = join(swatch(f"box {split}"), f"{size} px ({len(points):,})")
        yield Layer(f"size-{size}", title, shape, is_on=size == index.patch_sizes[-1], note=note)


def _boxes(points: np.ndarray, side: int, size: tuple[int, int], split: str, positive: bool) -> Html:
    if len(points) == 0:
        return Html()
    kind = "positive" if positive else "negative"
    flags = tag("path", d=flags_path(points, side), class_=f"flag {split}") if positive else ""
    return join(tag("path", d=boxes_path(points, side), class_=f"box {split} {kind}"), flags)


def _shade(points: np.ndarray, side: int, size: tuple[int, int], split: str, positive: bool) -> Html:
    if len(points) == 0:
        return Html()
    opacity, cell = density(points, side, size)
    picture = shade_uri(opacity * (0.5 if positive else 0.25), SPLIT_COLOURS[split])
    return tag("image", href=picture, width=opacity.shape[1] * cell, height=opacity.shape[0] * cell, class_="shade")


def _mark_layer(view: SlideView, index: PatchIndex) -> list[Layer]:
    """Where the patches of the contact sheet lie, with their numbers."""
    info, shapes = index.infos[view.number], []
    font = max(info.size) / 45
    for number, cutout in enumerate(view.cutouts, 1):
        x, y = int(index.x[cutout.row]), int(index.y[cutout.row])
        side = l0_length(int(index.size[cutout.row]), info.downsample)
        shapes.append(tag("path", d=boxes_path(np.array([[x, y]]), side), class_="mark"))
        centre = {"x": f"{x + side / 2:g}", "y": f"{y + side / 2:g}"}
        shapes.append(tag("text", number, **centre, font_size=f"{font:.4g}"))
    return [Layer("marks", join(swatch("mark"), "contact sheet"), join(*shapes), is_on=False)]
