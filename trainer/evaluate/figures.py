"""The report's figures, drawn with matplotlib from plain numbers and the region pictures. No TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASS_COLOURS = np.array(
    [(236, 231, 242), (214, 39, 98), (31, 119, 180), (44, 160, 44), (255, 152, 48), (148, 103, 189), (140, 86, 75)],
    np.uint8,
)
"""Colour of each class; the first is the pale one of 'everything else', and the cycle repeats after the last."""
IGNORED_COLOUR = (255, 255, 255)


def colour_classes(classes: np.ndarray) -> np.ndarray:
    """[H, W] uint8 class numbers -> [H, W, 3] uint8 colours; ignored pixels are white."""
    palette = np.empty((256, 3), np.uint8)
    palette[:] = [CLASS_COLOURS[0 if i == 0 else 1 + (i - 1) % (len(CLASS_COLOURS) - 1)] for i in range(256)]
    palette[255] = IGNORED_COLOUR
    return palette[classes]


def draw_curves(path: Path, steps: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]]) -> None:
    """Loss and learning rate against the global step, one shade per stage."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, height_ratios=(3, 1))
    x = [s["step"] for s in steps]
    top.plot(x, [s["loss"] for s in steps], color="#2c3e70", linewidth=1.4)
    bottom.plot(x, [s["learning_rate"] for s in steps], color="#a04000", linewidth=1.4)
    start, above = 0, top.get_xaxis_transform()  # x in steps, y as a share of the axis
    for number, stage in enumerate(stages):
        end = start + stage["steps"]
        for axis in (top, bottom):
            axis.axvspan(start, end, color="#2c3e70", alpha=0.04 if number % 2 else 0.10, linewidth=0)
        top.text((start + end) / 2, 1.02, f"{stage['patch_size']} px", ha="center", fontsize=9, transform=above)
        start = end
    top.set_ylabel("training loss")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("global step")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    _save(figure, path)


def draw_scores(path: Path, stages: Sequence[dict[str, Any]], final_network: dict[str, Any] | None) -> None:
    """Mean IoU against patch size: same pixels, per size, and the final network through smaller patches."""
    figure, axis = plt.subplots(figsize=(6.4, 4))
    sizes = [s["patch_size"] for s in stages]
    axis.plot(sizes, [s["common_miou"] for s in stages], "o-", label="after each stage, same pixels (common footprint)")
    axis.plot(
        sizes, [s["val_miou"] for s in stages], "s:", alpha=0.6, label="after each stage, each size's own patches"
    )
    if final_network:
        final = sorted((int(size), s["miou"]) for size, s in final_network.items())
        axis.plot(*zip(*final, strict=True), "^--", alpha=0.8, label="final network, same pixels, smaller patches")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(sizes)), [str(s) for s in sorted(set(sizes))])
    axis.minorticks_off()
    axis.set_xlabel("patch size (px)")
    axis.set_ylabel("validation mean IoU")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_regions(path: Path, folder: Path, stages: Sequence[dict[str, Any]], classes: Sequence[str]) -> bool:
    """Rows of one region each: image, truth, and the prediction after every stage. False when there is none."""
    images = sorted(folder.glob("*-image.png"), key=lambda p: int(p.name.split("-")[0]))
    if not images:
        return False
    titles = ["slide", "truth", *(f"stage {i}: {s['patch_size']} px" for i, s in enumerate(stages))]
    figure, axes = plt.subplots(
        len(images), len(titles), figsize=(2.5 * len(titles), 2.6 * len(images) + 0.4), squeeze=False
    )
    for row, image in zip(axes, images, strict=True):
        prefix = image.name.removesuffix("image.png")
        maps = [folder / f"{prefix}truth.png", *(folder / f"{prefix}stage{i}.png" for i in range(len(stages)))]
        row[0].imshow(np.asarray(Image.open(image)))
        for axis, file in zip(row[1:], maps, strict=True):
            if file.exists():  # a disk was full, or there were fewer regions, when this stage was scored
                axis.imshow(colour_classes(np.asarray(Image.open(file))))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    colours = colour_classes(np.arange(len(classes), dtype=np.uint8)[None])[0] / 255
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#888888") for c in colours]
    figure.legend(handles, classes, loc="lower center", ncols=min(len(classes), 7), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    _save(figure, path, tight=False)
    return True


def stage_pictures(folder: Path, stage: int) -> Iterator[tuple[str, np.ndarray]]:
    """(region number, [h, 3 w, 3] uint8: slide, truth and prediction side by side) of one stage."""
    for predicted in sorted(folder.glob(f"*-stage{stage}.png")):
        region = predicted.name.split("-")[0]
        image, truth = (np.asarray(Image.open(folder / f"{region}-{kind}.png")) for kind in ("image", "truth"))
        classes = [colour_classes(x) for x in (truth, np.asarray(Image.open(predicted)))]
        yield region, np.concatenate([image, *classes], axis=1)


def _save(figure: Any, path: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary, dpi=130)
    plt.close(figure)
    temporary.rename(path)
