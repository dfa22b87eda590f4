"""From an index to the page on disk, slide by slide."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.config.schema import Config
from trainer.errors import AnnotationError, DataError, SlideError
from trainer.files import replace_content
from trainer.inspect.choose import find_slide, spread_over_splits
from trainer.inspect.collect import collect, open_direct_store
from trainer.inspect.markup import Html
from trainer.inspect.page import page
from trainer.inspect.slide_section import fault_section, slide_section
from trainer.patches.build import Progress
from trainer.patches.index import PatchIndex
from trainer.stores import PatchStore

log = logging.getLogger(__name__)


def write_page(
    index: PatchIndex,
    config: Config,
    index_path: Path,
    out: Path | None = None,
    slide: str | None = None,
    max_slides: int = 20,
    progress: Progress | None = None,
) -> Path:
    """Write the page and say where: `out`, else `inspect.html` (or `inspect-SLIDE.html`) beside the index.

    A slide that cannot be read any more is shown with the reason in its place.

    Args:
      slide: file name or stem of the only slide to draw.
      max_slides: else how many are drawn.
      progress: called with (done, total) after each.
    Raises:
      DataError: no such slide, or the page cannot be written.
    """
    shown = spread_over_splits(index, max_slides) if slide is None else [find_slide(index, slide)]
    suffix = "" if slide is None else f"-{index.slides[shown[0]].slide.stem}"
    store, sections = open_direct_store(index, config), []
    for done, number in enumerate(shown, 1):
        sections.append(_section(number, index, config, index_path, store))
        if progress:
            progress(done, len(shown))
    out = out or index_path.with_name(f"inspect{suffix}.html")
    _write(page(index, config, sections, shown), out)
    return out


def _section(number: int, index: PatchIndex, config: Config, index_path: Path, store: PatchStore) -> Html:
    try:
        return slide_section(collect(number, index, config, index_path, store), index, config)
    except (SlideError, AnnotationError) as error:
        log.warning("slide not drawn: %s", error)
        return fault_section(number, index, str(error))


def _write(html: Html, out: Path) -> None:
    """File names that are no UTF-8 show question marks; a reader never sees half a page."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_content(out, html.encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(
            f"cannot be written: {error}", where=str(out), fix="choose another place with -o FILE"
        ) from error
