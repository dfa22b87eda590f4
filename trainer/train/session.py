"""Everything a run needs, made ready and checked on all ranks before the first step."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.batches.order import EpochOrder, rows_of_rank
from trainer.config import Config, check_rules, dump_config
from trainer.config.schema import StageConfig
from trainer.curriculum import Plan, make_plan
from trainer.errors import CommError
from trainer.evaluate.score import Evaluator, Predict, make_predict
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.patches.build import build_index
from trainer.patches.hard import hard_rows
from trainer.patches.index import PatchIndex, is_current, read_index
from trainer.patches.sample import is_positive
from trainer.quiet import quiet_stderr
from trainer.runtime import Comm, on_root
from trainer.stores import PatchStore, check_store, open_store
from trainer.train.checkpoint import digest, optimizer_variables
from trainer.train.console import Console
from trainer.train.step import make_optimizer


@dataclass
class Session:
    """The parts of one run, the same on every rank but for `comm`."""

    config: Config
    comm: Comm
    console: Console
    index: PatchIndex
    store: PatchStore
    orders: dict[int, EpochOrder]
    """Stage number -> its order of training patches."""
    plan: Plan
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    predict: Predict
    evaluator: Evaluator
    ranks: list[dict[str, Any]]


def configure_tensorflow(config: Config, threads: int, local_rank: int) -> None:
    """Threads, precision, seed and this rank's GPU. Called once, before TensorFlow computes anything."""
    intra = config.runtime.intra_op_threads or threads
    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with quiet_stderr():  # a machine without a GPU is no error worth six lines on every rank
        gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[local_rank % len(gpus)], "GPU")
        tf.config.experimental.set_memory_growth(gpus[local_rank % len(gpus)], True)
    keras.mixed_precision.set_global_policy(config.training.precision)
    keras.utils.set_random_seed(config.seed)


def prepare_index(config: Config, comm: Comm, console: Console) -> PatchIndex:
    """The patch index: read where one with the same settings lies, else built by all ranks and written by rank 0."""
    path = config.index_path
    if on_root(comm, lambda: is_current(path, config)):
        console.line(f"patch index: {path} (same settings, read)")
        return read_index(path)
    console.line(f"patch index: building {path}")
    index = build_index(config, path, comm.rank, comm.world_size, comm.gather, _progress(console))
    for line in index.unreadable:
        console.line(f"warning: slide passed over: {line}")
    return index


def _progress(console: Console) -> Any:
    return lambda done, total: console.line(f"  {done}/{total} slides") if done == total or done % 10 == 0 else None


def open_session(config: Config, comm: Comm, console: Console, threads: int, *, read_weights: bool = True) -> Session:
    """Check the configuration, index the data, build the network, and make all replicas equal.

    Args:
      read_weights: False where a checkpoint will fill the network: the backbone's weights file is not needed then.
    """
    for warning in check_rules(config, comm.world_size):
        console.line(f"warning: {warning}")
    index = prepare_index(config, comm, console)
    on_root(comm, lambda: check_store(index, config))
    reduce = comm.allreduce_tensor if comm.world_size > 1 else None
    model = build_model(config.model, len(config.data.classes), all_reduce=reduce, read_weights=read_weights)
    optimizer = make_optimizer(config.training.optimizer, config.training.precision)
    optimizer.build(model.trainable_variables)
    comm.broadcast_variables([*model.variables, *optimizer_variables(optimizer)])
    check_replicas(comm, model, optimizer, "after the first broadcast")
    orders = {n: training_order(config, index, n, stage) for n, stage in enumerate(config.curriculum)}
    lengths = {config.curriculum[n].patch_size: order.length for n, order in orders.items()}
    plan = make_plan(config.curriculum, lengths, comm.world_size)
    if config.stores.stage_to:
        console.line(f"copying each rank's training patches to {config.stores.stage_to}")
    rows = rows_to_train_on(plan, orders, comm.rank, comm.world_size)
    store = open_store(index, config, rows, checks=False)
    batch_sizes = {s.patch_size: s.local_batch_size for s in config.curriculum}
    return Session(
        config=config,
        comm=comm,
        console=console,
        index=index,
        store=store,
        orders=orders,
        plan=plan,
        model=model,
        optimizer=optimizer,
        predict=make_predict(model),
        evaluator=Evaluator(config, index, store, comm, batch_sizes),
        ranks=comm.gather(describe_rank(comm, config.runtime.intra_op_threads or threads)),
    )


def training_order(config: Config, index: PatchIndex, number: int, stage: StageConfig) -> EpochOrder:
    """The order in which one stage reads the training patches; a function of the seed and the stage's number."""
    rows = index.select(stage.patch_size, "train")
    positive = is_positive(index.label_fractions[rows], config.sampling.min_tumour_fraction)
    listed = config.sampling.hard_negatives
    is_hard = hard_rows(index, rows, listed) if listed else None
    return EpochOrder(rows, positive, config.sampling, (config.seed, number), is_hard)


def rows_to_train_on(plan: Plan, orders: dict[int, EpochOrder], rank: int, world_size: int) -> np.ndarray:
    """[n] index rows that one rank reads in the whole curriculum, each once."""
    rows = [
        rows_of_rank(orders[s.number], s.num_steps, s.local_batch_size, rank, world_size) for s in plan.stages
    ]  # fmt: skip
    return np.unique(np.concatenate(rows))


def check_replicas(comm: Comm, model: keras.Model, optimizer: keras.optimizers.Optimizer, when: str) -> None:
    """Stop all ranks when one rank's weights or optimiser state differ in any bit from rank 0's."""
    digests = comm.gather(digest(model, optimizer))
    differing = [rank for rank, d in enumerate(digests) if d != digests[0]]
    if differing:
        raise CommError(
            f"rank(s) {differing} hold other weights than rank 0 {when}",
            where=f"{comm.world_size} ranks",
            fix="this is a bug or a hardware fault: please report it with config.yaml",
        )


def describe_rank(comm: Comm, threads: int) -> dict[str, Any]:
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {"rank": comm.rank, "host": socket.gethostname(), "cpus": cpus, "threads": threads}


def resolved_yaml(config: Config, world_size: int) -> str:
    """What `config.yaml` in the run directory holds: the settings with the number of ranks above them."""
    return f"# resolved by widefield; trained on {world_size} rank(s)\n{dump_config(config)}"
