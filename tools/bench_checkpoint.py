"""What a checkpoint costs: the copy that stops training, the write in the background, and the comparison of ranks.

  python tools/bench_checkpoint.py BACKBONE FOLDER

Of a network with Adam, median of seven. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from trainer.config.schema import ModelConfig, OptimizerConfig
from trainer.curriculum import Position
from trainer.models import build_model
from trainer.train.checkpoint import Progress, digest, snapshot, write_checkpoint
from trainer.train.step import make_optimizer

REPEATS = 7


def seconds_of(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def main(backbone: str, folder: Path) -> None:
    model = build_model(ModelConfig(backbone=backbone), 2)
    optimizer = make_optimizer(OptimizerConfig(), "float32")
    optimizer.build(model.trainable_variables)
    folder.mkdir(parents=True, exist_ok=True)
    path, arrays = folder / "bench.safetensors", snapshot(model, optimizer)
    result = {
        "backbone": backbone,
        "megabytes": sum(a.nbytes for a in arrays.values()) / 1e6,
        "copy_s": seconds_of(lambda: snapshot(model, optimizer)),
        "write_s": seconds_of(lambda: write_checkpoint(path, arrays, Progress(Position(), 1))),
        "compare_s": seconds_of(lambda: digest(model, optimizer)),
    }
    path.unlink()
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
