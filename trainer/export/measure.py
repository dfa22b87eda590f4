"""Latency and peak memory of one network, and on request its Dice, in a process of its own.

  python -m trainer.export.measure RUN_DIR NETWORK TILES.npy PATCH_SIZE THREADS [--score]

NETWORK is an export's folder, or `tensorflow` for the run's own in float32. TILES.npy holds uint8 [N, P, P, 3]; each
is predicted alone, and one first that does not count. Peak memory (VmHWM) is read before anything is scored. Prints one
line of JSON. For an export, TensorFlow is not imported.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config, load_run_config
from trainer.infer.network import Network
from trainer.train.clock import peak_memory_bytes

TENSORFLOW = "tensorflow"


def measure(run: Path, name: str, tiles: Path, patch_size: int, threads: int, score: bool) -> dict[str, Any]:
    """What the module's text says."""
    config = load_run_config(run)
    network = _network(config, run, name, threads)
    images = np.load(tiles)
    network(images[:1])
    seconds = []
    for at in range(len(images)):
        start = time.perf_counter()
        network(images[at : at + 1])
        seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
    return found | {"dice": _dice(config, network, patch_size)} if score else found


def _network(config: Config, run: Path, name: str, threads: int) -> Network:
    if name != TENSORFLOW:
        from trainer.infer.exported_network import ExportedNetwork

        return ExportedNetwork(Path(name), threads)
    from trainer.infer.run_network import RunNetwork
    from trainer.train.session import configure_tensorflow

    training = config.training.model_copy(update={"precision": "float32"})
    configure_tensorflow(config.model_copy(update={"training": training}), threads, 0)
    return RunNetwork(config, run)


def _dice(config: Config, network: Network, patch_size: int) -> float:
    from trainer.export.patches import validation_patches
    from trainer.export.score import confusions, dice_of

    patches = validation_patches(config, patch_size)
    return dice_of(confusions(network, patches, len(network.recipe.class_names)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("tiles", type=Path)
    parser.add_argument("patch_size", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--score", action="store_true")
    print(json.dumps(measure(**vars(parser.parse_args()))))
