"""Synthetic slides in CAMELYON16's layout, built so that context decides: a larger field of view must win.

Every slide is stroma with round compartments 200-270 px across (level 0). All compartments are filled from one
generating distribution: the same cytoplasm, the same number, size, shape and colour of nuclei. A compartment is tumour
or benign, and the only thing that shows which is a marker of 14 px radius at its centre: a dark whorl in a tumour, a
pale lumen in a benign compartment. The label holds for the whole compartment, so most of its pixels lie too far from
the marker for a small patch to know it: a patch that does not reach the marker can do no better than guess the more
frequent class. `context_bound` turns this into a number: tiles of 64 px cannot exceed 0.71 accuracy on compartments,
128 px 0.83, 256 px 0.91.

Annotated as tumour are the tumour compartments without their islands of stroma (exclusion group `_2`; benign
compartments have such islands as often). Everything else is normal.

    layout.py   where everything lies, as numbers
    paint.py    layout -> pixels
    files.py    pixels -> pyramidal TIFF, layout -> ASAP XML
    bound.py    what a field of view can know
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.errors import DataError
from trainer.slides.synthetic.bound import context_bound, marker_seen_share
from trainer.slides.synthetic.files import write_annotation, write_slide
from trainer.slides.synthetic.layout import Compartment, Outline, SlideLayout, plan_slide
from trainer.slides.synthetic.paint import paint_slide

__all__ = [
    "Compartment",
    "Outline",
    "SlideLayout",
    "context_bound",
    "make_slides",
    "marker_seen_share",
    "paint_slide",
    "plan_data_set",
    "plan_slide",
]

MIN_SIZE_PX = 1024  # about ten compartments; below, packing leaves too few of either class
MAX_SIZE_PX = 8192  # a slide is painted in memory: about 3.5 GiB at this size, 0.25 GiB at 2048
NORMAL_SHARE = 0.25  # of the training slides, at least one


def make_slides(
    out: Path,
    *,
    num_train: int,
    num_test: int,
    size: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write slides and annotations below `out`, which must be empty or absent; the slides' paths, training first.

    A slide depends on `seed`, `size` and its own name only: `test_001` is the same in a data set of any size.

    Args:
      num_train: one in four, and at least one, is a normal slide without annotation.
      num_test: test slides, all with tumour.
      size: level-0 width and height in px.
      progress: called as progress(slides done, slides in all).
    Raises:
      DataError: `out` holds something or cannot be written, or a number is out of range.
    """
    _check(num_train, num_test, size, seed)
    _check_empty(out)
    plans = list(plan_data_set(num_train=num_train, num_test=num_test, size=size, seed=seed))
    try:
        for done, (relative, layout) in enumerate(plans, start=1):
            if any(compartment.is_tumour for compartment in layout.compartments):
                folder = out / relative.parts[0] / "lesion_annotations"
                write_annotation(folder / f"{relative.stem}.xml", layout)
            write_slide(out / relative, paint_slide(layout))
            if progress:
                progress(done, len(plans))
    except OSError as error:
        raise DataError(
            f"cannot write: {error}", where=str(out), fix="free some space or name another directory"
        ) from error
    return [out / relative for relative, _ in plans]


def plan_data_set(*, num_train: int, num_test: int, size: int, seed: int) -> Iterator[tuple[Path, SlideLayout]]:
    """Path below the data set's root and layout of every slide that `make_slides` writes with these numbers."""
    num_normal = max(1, round(NORMAL_SHARE * num_train))
    folders = [
        ("training/normal", "normal", num_normal),
        ("training/tumor", "tumor", num_train - num_normal),
        ("testing/images", "test", num_test),
    ]
    for kind, (folder, name, num) in enumerate(folders):
        for number in range(1, num + 1):
            layout = plan_slide(size, (seed, kind, number), has_tumour=name != "normal")
            yield Path(folder) / f"{name}_{number:03d}.tif", layout


def _check(num_train: int, num_test: int, size: int, seed: int) -> None:
    def refuse(name: str, value: int, fix: str) -> DataError:
        return DataError(f"{name} = {value}", where="make-slides", fix=fix)

    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise refuse("size", size, f"choose a size from {MIN_SIZE_PX} to {MAX_SIZE_PX} px, for example 2048")
    if num_train < 2:
        raise refuse("training slides", num_train, "ask for at least 2: one normal, one with tumour")
    if num_test < 0:
        raise refuse("test slides", num_test, "ask for 0 or more")
    if seed < 0:
        raise refuse("seed", seed, "use a whole number, 0 or more")


def _check_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError("this is a file", where=str(out), fix="name a directory that is empty or does not exist")
    if out.exists() and any(out.iterdir()):
        found = min(path.name for path in out.iterdir())
        raise DataError(
            f"the directory holds files already ({found}); nothing is overwritten",
            where=str(out),
            fix="name another directory, or delete this one if it is an unfinished data set",
        )
