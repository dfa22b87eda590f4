"""report.json for machines and report.md with figures for people, from the numbers a run has collected."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.config.architectures import ARCHITECTURES
from trainer.evaluate.figures import draw_curves, draw_regions, draw_scores
from trainer.files import replace_content

Column = tuple[str, Callable[[Any], str]]
"""Title, and what it says of a row."""


def write_report(run: Path, report: dict[str, Any], events: Sequence[dict[str, Any]]) -> None:
    """Write `report.json`, `report.md` and `figures/` into the run directory, each whole or not at all.

    Args:
      report: see DESIGN.md, "Run directory".
      events: the lines of metrics.jsonl.
    """
    replace_content(run / "report.json", json.dumps(report, indent=1) + "\n")
    figures = run / "figures"
    figures.mkdir(exist_ok=True)
    stages = report["stages"]
    draw_curves(figures / "curves.png", [e for e in events if e["event"] == "step"], stages)
    draw_scores(figures / "scores.png", stages, report["final_network"])
    has_regions = draw_regions(figures / "regions.png", figures / "regions", stages, report["classes"])
    replace_content(run / "report.md", render(report, has_regions))


def _fixed(key: str, digits: int) -> Callable[[dict[str, Any]], str]:
    return lambda row: "n/a" if row.get(key) is None else f"{row[key]:.{digits}f}"


def _share(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "n/a" if row.get(key) is None else f"{row[key]:.2%}"


_COMMON: tuple[Column, ...] = (
    ("patch size", lambda s: str(s["patch_size"])),
    ("accuracy", _fixed("common_accuracy", 4)),
    ("mIoU", _fixed("common_miou", 4)),
    ("Dice", _fixed("common_dice", 4)),
    ("AUC", _fixed("common_auc", 4)),
    ("Mpx scored", _fixed("common_megapixels", 2)),
)
_PER_SIZE: tuple[Column, ...] = (
    ("patch size", lambda s: str(s["patch_size"])),
    ("accuracy", _fixed("val_accuracy", 4)),
    ("mIoU", _fixed("val_miou", 4)),
    ("Dice", _fixed("val_dice", 4)),
    ("AUC", _fixed("val_auc", 4)),
    ("validation patches", lambda s: str(s["val_patches"])),
    ("Mpx scored", _fixed("val_megapixels", 2)),
)
_COST: tuple[Column, ...] = (
    ("patch size", lambda s: str(s["patch_size"])),
    ("global batch", lambda s: str(s["global_batch_size"])),
    ("steps", lambda s: str(s["steps"])),
    ("seconds", _fixed("seconds", 0)),
    ("Mpx/s, all ranks", _fixed("megapixels_per_second", 3)),
    ("peak memory per rank (GB)", _fixed("peak_memory_gb", 2)),
    ("data wait", _share("data_wait_fraction")),
    ("all-reduce not hidden", _share("allreduce_fraction")),
    ("checkpoints", _share("checkpoint_fraction")),
    ("loop overhead", _share("overhead_fraction")),
    ("gradient MB per step", lambda s: f"{s['allreduce_bytes_per_step'] / 1e6:.1f}"),
)
_SHARED: tuple[Column, ...] = (
    ("ranks per patch", lambda s: str(s.get("spatial", 1))),
    ("halo MB per rank and step", lambda s: f"{s.get('halo_bytes_per_step', 0) / 1e6:.1f}"),
)
"""Where ranks shared patches."""
SCORES: tuple[Column, ...] = (
    ("patch size", lambda s: str(s["patch_size"])),
    ("common mIoU", _fixed("common_miou", 4)),
    ("common AUC", _fixed("common_auc", 4)),
    ("mIoU", _fixed("val_miou", 4)),
    ("AUC", _fixed("val_auc", 4)),
    ("accuracy", _fixed("val_accuracy", 4)),
)
"""The columns that `widefield evaluate` prints."""


def _sittings(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Which stages were resumed or rolled back, so that a part of them was not measured in this sitting."""
    resumed = [s for s in stages if s["measured_from_step"] > s["first_step"]]
    return [
        f"\nThe stage at {s['patch_size']} px went on from a checkpoint: its speed and memory are those after step "
        f"{s['measured_from_step']}; seconds and steps are of the whole stage."
        for s in resumed
    ]


def table(columns: Sequence[Column], rows: Sequence[Any]) -> str:
    """A Markdown table with right-aligned numbers."""
    lines = [
        "| " + " | ".join(title for title, _ in columns) + " |",
        "|" + " ---: |" * len(columns),
        *("| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _network(model: dict[str, Any]) -> str:
    idle = ARCHITECTURES[model["architecture"]].idle
    on = "" if "backbone" in idle else f" on {model['backbone']}"
    stride = "" if "output_stride" in idle else f", output stride {model['output_stride']}"
    return f"{model['architecture']}{on}{stride}, {model['norm']} norm"


def render(report: dict[str, Any], has_regions: bool) -> str:
    """The Markdown of report.md."""
    stages, ranks = report["stages"], report["ranks"]
    finished = len(stages) == report["stages_planned"]
    bound = max((s[k] or 0 for s in stages for k in ("common_auc_error_bound", "val_auc_error_bound")), default=0)
    parts = [
        f"# {report['name']}",
        "" if finished else f"**Unfinished: {len(stages)} of {report['stages_planned']} stages.**\n",
        f"{_network(report['model'])}, {report['parameters'] / 1e6:.1f} M parameters; "
        f"classes: {', '.join(report['classes'])}. "
        f"{report['world_size']} rank(s), {report['precision']}, gradients compressed: {report['compression']}, "
        f"seed {report['seed']}.",
        "",
        "All figures on this page were measured in this run.",
        "",
        "## The same pixels for every patch size (common footprint)",
        "",
        "The validation regions of the largest size, tiled by each smaller one: rows may be compared.",
        "",
        table(_COMMON, stages),
        "",
        "![mean IoU against patch size](figures/scores.png)",
        "",
        *_final_network(report["final_network"]),
        *(["## Regions", "", "![regions, truth and predictions](figures/regions.png)", ""] if has_regions else []),
        "## Each size on its own validation patches",
        "",
        "The usual way to report; sizes are scored on different pixels, so rows may not be compared with one another.",
        "",
        table(_PER_SIZE, stages),
        "",
        f"AUC is from probabilities through a histogram; it is exact to within {bound:.1e}.",
        "",
        "## Cost",
        "",
        table(_COST + (_SHARED if any(s.get("spatial", 1) > 1 for s in stages) else ()), stages),
        "",
        "Speed leaves out the first two steps of a stage, in which TensorFlow traces the network.",
        *_sittings(stages),
        "",
        "![loss and learning rate](figures/curves.png)",
        "",
        "## Ranks",
        "",
        table(
            (
                ("rank", lambda r: str(r["rank"])),
                ("host", lambda r: r["host"]),
                ("CPUs", lambda r: ",".join(map(str, r["cpus"])) or "n/a"),
                ("threads", lambda r: str(r["threads"])),
            ),
            ranks,
        ),
        "",
        f"Widefield {report['widefield']}, TensorFlow {report['tensorflow']}, {report['machine']}.",
        "",
    ]
    return "\n".join(parts)


def _final_network(scores: dict[str, Any] | None) -> list[str]:
    if not scores or len(scores) < 2:
        return []
    rows = [{"patch_size": size, **s} for size, s in sorted(scores.items(), key=lambda kv: int(kv[0]))]
    columns: list[Column] = [("patch size", lambda s: str(s["patch_size"]))]
    columns += [(t, _fixed(k, 4)) for t, k in (("accuracy", "accuracy"), ("mIoU", "miou"), ("Dice", "dice"))]
    columns += [("AUC", _fixed("auc", 4))]
    return [
        "The later stages have also trained longer. The final network alone, shown the same pixels through smaller",
        "patches, separates the field of view from the training:",
        "",
        table(columns, rows),
        "",
    ]
