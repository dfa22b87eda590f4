"""The smallest real run: generated slides, MobileNetV2, two patch sizes, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {
        "format": "camelyon16",
        "classes": [{"name": "normal"}, {"name": "tumour", "groups": ["_0"]}],
        "exclusion_groups": ["_2"],
    },
    "split": {"by": "slide", "val_fraction": 0.34},
    "model": {"backbone": "mobilenetv2", "aspp_channels": 16, "decoder_channels": 16},
    "training": {"optimizer": {"learning_rate": 0.001}, "log_every_steps": 2},
    "curriculum": [
        {"patch_size": 64, "local_batch_size": 4, "steps": 4},
        {"patch_size": 160, "local_batch_size": 1, "steps": 3},
    ],
    "evaluation": {"max_patches": 37, "max_regions": 5, "figure_regions": 2},
}


def write_config(folder: Path, slides: Path, **changes: Any) -> Path:
    """A config file beside its run directory `folder/run`; `changes` replace whole sections."""
    config = {**TINY, "output": str(folder / "run"), **changes}
    config["data"] = {**config["data"], "path": str(slides)}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
