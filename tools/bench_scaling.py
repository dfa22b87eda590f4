"""Weak scaling from one core to two against what the two cores can do at all, in turns within one run.

  mpirun -np 2 --bind-to core python tools/bench_scaling.py BACKBONE PATCH BATCH [ROUNDS]

Each round, both ranks start together and time the same number of steps in three ways:
  alone          rank 0 trains without all-reduce, rank 1 sleeps
  independent    both train without all-reduce, knowing nothing of each other: the two cores' own ceiling
  together       both train with the all-reduce of every step (Horovod, fp16)
Speeds are patches per second over all ranks; the ratio is the median over the rounds. Operations are deterministic, as
in `widefield train`. Prints one line of JSON on rank 0.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from trainer.config.schema import ModelConfig, TrainingConfig
from trainer.models import build_model
from trainer.models.determinism import deterministic_operations
from trainer.models.keras import keras, tf
from trainer.runtime import SingleComm, start_comm
from trainer.runtime.start import my_threads
from trainer.train.step import TrainStep, make_optimizer

STEPS = 3


def main(backbone: str, patch_size: int, batch: int, num_rounds: int) -> None:
    """Time the three ways in turns on this rank; rank 0 prints."""
    threads = my_threads().intra_op
    comm = start_comm("horovod")
    from mpi4py import MPI  # not before start_comm, which says how MPI shall wait

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(1)
    deterministic_operations()
    config = TrainingConfig(compression="fp16")
    model = build_model(ModelConfig(backbone=backbone), 2)
    steps = {
        name: TrainStep(model, make_optimizer(config.optimizer, "float32"), config, c)
        for name, c in (("independent", SingleComm()), ("together", comm))
    }
    steps["alone"] = steps["independent"]
    rng = np.random.default_rng(comm.rank)
    images = rng.integers(0, 256, (batch, patch_size, patch_size, 3), np.uint8)
    labels = rng.integers(0, 2, (batch, patch_size, patch_size), np.uint8)

    def seconds(name: str) -> float:
        """Of STEPS steps: harmonic mean over the ranks that take part, so that speeds add up."""
        comm.barrier()
        if name == "alone" and comm.rank:
            while not MPI.COMM_WORLD.iprobe(0):  # a waiting collective would take the core's time
                time.sleep(0.02)
            MPI.COMM_WORLD.recv(source=0)
            comm.gather(0.0)
            return 0.0
        start = time.perf_counter()
        for _ in range(STEPS):
            steps[name](images, labels, 0)
        mine = time.perf_counter() - start
        if name == "alone":
            MPI.COMM_WORLD.send(None, 1)
        speeds = [1 / t for t in comm.gather(mine) if t]
        return float(1 / np.mean(speeds))

    order = ["alone", "independent", "together"]
    for name in order:
        seconds(name)  # trace
    times: dict[str, list[float]] = {name: [] for name in order}
    for number in range(num_rounds):
        for name in order if number % 2 else reversed(order):
            times[name].append(seconds(name))
    if comm.rank:
        return
    median = {name: float(np.median(t)) / STEPS for name, t in times.items()}
    ratios = np.array(times["independent"]) / np.array(times["together"])
    print(
        json.dumps(
            {
                "backbone": backbone,
                "patch_size": patch_size,
                "batch": batch,
                "rounds": num_rounds,
                "threads": threads,
                **{f"{name}_step_s": value for name, value in median.items()},
                "of_ceiling": float(np.median(ratios)),
                "quartiles_of_rounds": [float(np.quantile(ratios, q)) for q in (0.25, 0.75)],
                "efficiency": median["alone"] / median["together"],
                "ceiling_efficiency": median["alone"] / median["independent"],
            }
        )
    )


if __name__ == "__main__":
    backbone, *numbers = sys.argv[1:]
    main(backbone, *[int(number) for number in [*numbers, "12"][:3]])
