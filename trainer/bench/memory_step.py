"""Peak memory and step time of one training setting, in a process of its own, or in several that share each patch.

  python -m trainer.bench.memory_step PATCH BATCH PRECISION RECOMPUTE [BACKBONE] [STEPS] [RANKS_PER_PATCH]
  mpirun -np 2 --bind-to core python -m trainer.bench.memory_step 2048 1 float32 none

PRECISION is float32, mixed_bfloat16 or mixed_float16; RECOMPUTE is none or blocks. A step is that of `widefield train`
with Adam, on a random batch; the ranks of mpirun each take a slab of its patches, or with RANKS_PER_PATCH 1 whole
patches of its own. The first step traces and warms up; the median is over the others. Peak memory is the largest
resident set (VmHWM) of any process, decimal gigabytes. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from trainer.config.schema import ModelConfig, TrainingConfig
from trainer.models import build_model
from trainer.models.determinism import deterministic_operations
from trainer.models.halos import check_split, slabs
from trainer.models.keras import keras, tf
from trainer.runtime import start_comm
from trainer.runtime.start import my_threads
from trainer.train.clock import peak_memory_bytes
from trainer.train.step import INTER_OP_THREADS, TrainStep, make_optimizer

NUM_CLASSES = 2


def main(
    patch_size: int,
    batch: int,
    precision: str,
    recompute: str,
    backbone: str,
    num_steps: int,
    ranks_per_patch: int | None,
) -> None:
    """Train so many steps after a first one and print what they took."""
    comm = start_comm("horovod")
    spatial = ranks_per_patch or comm.world_size
    threads = my_threads().intra_op
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(INTER_OP_THREADS)
    deterministic_operations()
    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_global_policy(precision)

    training = TrainingConfig(precision=precision, recompute=recompute)
    model = build_model(ModelConfig(backbone=backbone), NUM_CLASSES)
    optimizer = make_optimizer(training.optimizer, precision)
    optimizer.build(model.trainable_variables)
    if spatial > 1:
        check_split(model, patch_size, spatial)
    comm.broadcast_variables(model.variables)
    step = TrainStep(model, optimizer, training, comm)
    rng, rows = np.random.default_rng(comm.rank), slabs(patch_size, spatial)[comm.rank % spatial]
    shape = (batch, rows.stop - rows.start, patch_size)
    images = rng.integers(0, 256, (*shape, 3), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, shape, np.uint8)
    seconds = []
    for number in range(1 + num_steps):
        start = time.perf_counter()
        step(images, labels, number, spatial=spatial)
        seconds.append(time.perf_counter() - start)
    peaks, halos = comm.gather(peak_memory_bytes()), comm.gather(sum(step.halo_bytes.values()))
    if comm.rank > 0:
        return
    print(
        json.dumps(
            {
                "patch_size": patch_size,
                "batch": batch,
                "precision": precision,
                "recompute": recompute,
                "backbone": backbone,
                "threads": threads,
                "median_step_s": round(statistics.median(seconds[1:]), 4),
                "peak_memory_gb": round(max(peaks) / 1e9, 3),
                "ranks": comm.world_size,
                "ranks_per_patch": spatial,
                "halo_bytes": max(halos),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("patch_size", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("precision")
    parser.add_argument("recompute")
    parser.add_argument("backbone", nargs="?", default="resnet50")
    parser.add_argument("num_steps", nargs="?", type=int, default=3)
    parser.add_argument("ranks_per_patch", nargs="?", type=int, choices=(1,))
    main(**vars(parser.parse_args()))
