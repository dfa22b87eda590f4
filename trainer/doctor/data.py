"""Is the configuration valid, and can its slides be read from here?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from trainer.config import Config, check_rules, load_config
from trainer.config.schema import DataConfig
from trainer.doctor.finding import Finding, from_error
from trainer.errors import DataError, SlideError, WidefieldError

T = TypeVar("T")
_REGION_PX = 64


def read_config(path: str, overrides: Sequence[str], world_size: int) -> tuple[Config | None, list[Finding]]:
    """The configuration, None where it is not valid, and what is to be said of it."""
    try:
        config = load_config(path, overrides)
        warnings = check_rules(config, world_size)
    except WidefieldError as error:
        return None, [from_error("config", error)]
    valid = Finding("config", "ok", f"{path}: valid for {world_size} rank(s)")
    fix = f"widefield config {path} prints every setting"
    return config, [valid, *(Finding("config", "warning", warning, fix) for warning in warnings)]


def slide_findings(data: DataConfig, max_unreadable_fraction: float) -> list[Finding]:
    """Whether the data set is there, and its first, middle and last slide can be read."""
    try:
        from trainer.slides.dataset import load_dataset

        slides = [record.slide for record in load_dataset(data)]
    except DataError as error:
        return [from_error("slides", error)]
    tried = first_middle_last(slides)
    faults = [fault for slide in tried if (fault := _fault_of(slide))]
    if not faults:
        return [Finding("slides", "ok", f"{len(slides)} in {data.path}; {len(tried)} of them opened and read")]
    return [
        Finding(
            "slides",
            "warning" if max_unreadable_fraction else "error",
            f"{len(faults)} of {len(tried)} slides tried cannot be read: {'; '.join(faults)}",
            "copy them again, or set index.max_unreadable_fraction to go on without such slides",
        )
    ]


def first_middle_last(items: Sequence[T]) -> list[T]:
    """At most three, in order."""
    return [items[i] for i in sorted({0, len(items) // 2, len(items) - 1})]


def _fault_of(path: Path) -> str | None:
    """Why a slide cannot be read, None where a region from its middle can."""
    from trainer.slides.slide import open_slide

    try:
        slide = open_slide(path)
        slide.read(slide.size[0] // 2, slide.size[1] // 2, _REGION_PX)
    except SlideError as error:
        return f"{path.name} {error.what}"
    except OSError as error:
        return f"{path.name} {error}"
    return None
