"""The run's network by TensorFlow and by OpenVINO in each precision, side by side on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trainer import __version__
from trainer.bench.machine import machine
from trainer.config import Config
from trainer.errors import ExportError
from trainer.export.measure import TENSORFLOW
from trainer.export.patches import Patches, validation_patches
from trainer.files import replace_content
from trainer.infer.export_folder import files_of, read_about
from trainer.infer.exported_network import arithmetic
from trainer.infer.openvino import openvino
from trainer.train.checkpoint import weights_bytes

_ROUNDS = 3
"""Every network is measured once in each, in a fresh process: what else the machine does then meets all alike."""
_TILES = 6
"""Validation patches that are timed in each round."""


@dataclass(frozen=True)
class Variant:
    """A way to run the network.

    Args:
      network: an export's folder, or `tensorflow`.
      computes: in what, for people.
      file_bytes: of the weights on the disk.
    """

    name: str
    network: str
    computes: str
    file_bytes: int


@dataclass(frozen=True)
class Row:
    """What was measured of a variant: seconds of each tile, bytes, Dice on the validation patches."""

    variant: Variant
    seconds: tuple[float, ...] = ()
    peak_memory_bytes: int = 0
    dice: float = float("nan")

    @property
    def latency_s(self) -> float:
        return float(np.median(self.seconds))


def compare(
    config: Config,
    run: Path,
    exports: Sequence[Path],
    checkpoint: Path,
    patch_size: int,
    threads: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Measure TensorFlow and the exports in turns; writes compare.json and compare.md beside the exports.

    Raises:
      ExportError: no patches to measure with, or a process failed.
    """
    patches = validation_patches(config, patch_size)
    rows = [Row(v) for v in variants(exports, checkpoint)]
    with TemporaryDirectory() as folder:
        tiles = Path(folder) / "tiles.npy"
        np.save(tiles, _tiles(patches))
        for turn in range(_ROUNDS):
            for at, row in enumerate(rows):
                command = [str(run), row.variant.network, str(tiles), str(patch_size), str(threads)]
                found = _measured([*command, "--score"] if turn == 0 else command)
                rows[at] = _with(row, found)
                say(f"round {turn + 1}/{_ROUNDS}: {row.variant.name}: {np.median(found['seconds']) * 1000:.0f} ms")
    about = {
        "widefield": __version__,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "run": str(run.resolve()),
        "checkpoint": checkpoint.name,
        "threads": threads,
        "patch_size": patch_size,
        "timed_tiles": _ROUNDS * _TILES,
        "validation_patches": len(patches),
    }
    replace_content(run / "export" / "compare.json", json.dumps(about | {"rows": as_json(rows)}, indent=1) + "\n")
    replace_content(run / "export" / "compare.md", table(rows, about))
    return rows


def variants(exports: Sequence[Path], checkpoint: Path) -> list[Variant]:
    """TensorFlow's own first: what the others are compared with."""

    names = {"f32": "float32", "bf16": "bfloat16"}
    found = [Variant("TensorFlow float32", TENSORFLOW, "float32", weights_bytes(checkpoint))]
    for folder in exports:
        about = read_about(folder)
        rest = names[arithmetic(about["narrow"], openvino.Core())]
        size = sum((folder / name).stat().st_size for name in files_of(folder))
        name = {"fp32": "OpenVINO float32", "fp16": "OpenVINO 16 bits", "int8": "OpenVINO INT8"}[about["precision"]]
        kept = len(about["int8"]["kept_in_float32"]) if "int8" in about else 0
        computes = f"INT8, the rest {rest}" + (f", with {kept} layers" * bool(kept)) if "int8" in about else rest
        found.append(Variant(name, str(folder), computes, size))
    return found


def _tiles(patches: Patches) -> np.ndarray:
    """[N, P, P, 3] uint8, the same number however few there are."""
    images = [image for image, _ in islice(iter(patches), _TILES)]
    return np.stack([images[i % len(images)] for i in range(_TILES)])


def _measured(arguments: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainer.export.measure", *arguments]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise ExportError(
            f"the measurement failed: {(done.stderr.strip() or 'killed: memory has run out').splitlines()[-1]}",
            where=arguments[1],
            fix="python -m trainer.export.measure " + " ".join(arguments),
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _with(row: Row, found: dict[str, Any]) -> Row:
    return replace(
        row,
        seconds=(*row.seconds, *found["seconds"]),
        peak_memory_bytes=max(row.peak_memory_bytes, found["peak_memory_bytes"]),
        dice=found.get("dice", row.dice),
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row with its unrounded figures; speed-up is over the first."""
    return [
        {
            "name": row.variant.name,
            "computes": row.variant.computes,
            "dice": row.dice,
            "latency_s": row.latency_s,
            "quartiles_s": np.quantile(row.seconds, (0.25, 0.75)).tolist(),
            "speed_up": rows[0].latency_s / row.latency_s,
            "peak_memory_bytes": row.peak_memory_bytes,
            "file_bytes": row.variant.file_bytes,
        }
        for row in rows
    ]


def table(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Formats side by side",
        "",
        f"Measured {about['date']} by Widefield {about['widefield']} on {about['machine']}, {about['threads']} "
        f"threads: {about['checkpoint']} of {about['run']}.",
        "",
        f"Tiles of {about['patch_size']} px, one at a time; {about['timed_tiles']} of each in {_ROUNDS} fresh "
        f"processes, in turns: the median and quartiles. Dice is over {about['validation_patches']} validation "
        "patches. Memory is the largest resident set of the process before scoring.",
        "",
        *figures(as_json(rows)),
    ]
    return "\n".join([*lines, ""])


def figures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    lines = [
        "| network | computes in | Dice | latency (ms) | speed-up | peak memory (MB) | file (MB) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = (1000 * q for q in row["quartiles_s"])
        lines.append(
            f"| {row['name']} | {row['computes']} | {row['dice']:.4f} | {1000 * row['latency_s']:.0f} "
            f"({low:.0f}-{high:.0f}) | {row['speed_up']:.2f} | {row['peak_memory_bytes'] / 1e6:.0f} | "
            f"{row['file_bytes'] / 1e6:.1f} |"
        )
    return lines
