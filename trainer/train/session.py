"""Everything a run needs, made ready and checked on all ranks before the first step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.batches.order import EpochOrder, rows_of_rank
from trainer.config import Config, check_groups, check_rules, dump_config
from trainer.curriculum import START, Batch, Plan, Position, make_plan, plan_batches
from trainer.curriculum.batches import scoring_batches, scoring_splits
from trainer.errors import ConfigError
from trainer.evaluate.score import Evaluator, Predict, make_predict
from trainer.files import replace_content
from trainer.models import build_model
from trainer.models.determinism import deterministic_operations
from trainer.models.halos import check_split
from trainer.models.keras import keras, tf
from trainer.patches.build import build_index
from trainer.patches.hard import hard_rows
from trainer.patches.index import PatchIndex, is_current, read_index
from trainer.patches.index import digest as digest_of
from trainer.patches.sample import is_positive
from trainer.quiet import quiet_stderr
from trainer.runtime import Comm, on_root
from trainer.stores import PatchStore, check_store, open_store
from trainer.train.agreement import require_agreement
from trainer.train.checkpoint import digest, named_variables
from trainer.train.console import Console
from trainer.train.ema import Averaged
from trainer.train.fitting import fits_in_memory, memory_limit
from trainer.train.run_dir import MARK
from trainer.train.step import INTER_OP_THREADS, make_optimizer


@dataclass
class Session:
    """The parts of one run, the same on every rank but for `comm`."""

    config: Config
    comm: Comm
    console: Console
    index: PatchIndex
    store: PatchStore
    orders: dict[tuple[int, int], EpochOrder]
    """(stage number, patch size) -> its order of training patches."""
    batches: list[dict[int, Batch]]
    """For each stage, patch size -> batch."""
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    averaged: Averaged | None
    predict: Predict
    evaluator: Evaluator
    hashes: dict[str, str]
    """What all ranks must agree on and no step changes."""

    def plan(self, done: Position) -> Plan:
        """The stages in steps, from what is done on."""
        lengths = {size: order.length for (_, size), order in self.orders.items()}
        return make_plan(self.config.curriculum, self.batches, lengths, self.comm.world_size, done)

    def scored_weights(self) -> AbstractContextManager[None]:
        """Inside it the network has the weights that are scored: the averaged ones where there are any."""
        return self.averaged.swapped() if self.averaged else nullcontext()


def configure_tensorflow(config: Config, threads: int, local_rank: int) -> None:
    """Threads, precision, seed and this rank's GPU. Called once, before TensorFlow computes anything."""
    intra = config.runtime.intra_op_threads or threads
    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(INTER_OP_THREADS)
    with quiet_stderr():  # a machine without a GPU is no error worth six lines on every rank
        gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[local_rank % len(gpus)], "GPU")
        tf.config.experimental.set_memory_growth(gpus[local_rank % len(gpus)], True)
    keras.mixed_precision.set_global_policy(config.training.precision)
    keras.utils.set_random_seed(config.seed)
    if config.runtime.deterministic:
        deterministic_operations()


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


def prepare_data(config: Config, comm: Comm, console: Console) -> PatchIndex:
    """Settings that all ranks share and that go together, the patch index, and extracted patches that fit it."""
    require_agreement(comm, {"settings": config_hash(config)}, "at the start")
    for warning in check_rules(config, comm.world_size):
        console.line(f"warning: {warning}")
    index = prepare_index(config, comm, console)
    on_root(comm, lambda: check_store(index, config))
    return index


def build_network(config: Config, comm: Comm, *, read_weights: bool) -> keras.Model:
    """The network, its normalisation joined over ranks where it asks for that. Replicas are not equal yet."""
    reduce = comm.allreduce_tensor if comm.world_size > 1 else None
    return build_model(config.model, len(config.data.classes), all_reduce=reduce, read_weights=read_weights)


def _progress(console: Console) -> Any:
    return lambda done, total: console.line(f"  {done}/{total} slides") if done == total or done % 10 == 0 else None


def open_session(
    config: Config,
    comm: Comm,
    console: Console,
    *,
    read_weights: bool = True,
    done: Position = START,
) -> Session:
    """Check the configuration, index the data, build the network, and make all replicas equal.

    Args:
      read_weights: False where a checkpoint will fill the network: the backbone's weights file is not needed then.
      done: what a resumed run has behind it; only the patches after it are staged.
    """
    check_groups(config, comm.world_size)
    index = prepare_data(config, comm, console)
    check_plateaus(config, index)
    model = build_network(config, comm, read_weights=read_weights)
    check_splits(config, model)
    for size in sorted({s.parallel.spatial for s in config.curriculum} - {1}):
        comm.group(size)
    optimizer = make_optimizer(config.training.optimizer, config.training.precision)
    optimizer.build(model.trainable_variables)
    averaged = Averaged(model, config.training.ema_decay) if config.training.ema_decay else None
    comm.broadcast_variables(list(named_variables(model, optimizer, averaged).values()))
    orders = training_orders(config, index)
    limit = min(comm.gather(memory_limit(config, comm.local_size)))
    fits = fits_in_memory(model, config, comm.world_size, limit)
    batches = on_root(comm, lambda: plan_batches(config.curriculum, fits))
    hashes = {"settings": config_hash(config), "patch index": index_hash(index), "batches": digest_of(repr(batches))}
    require_agreement(comm, hashes | {"weights": digest(model, optimizer, averaged)}, "after the first broadcast")
    lengths = {size: order.length for (_, size), order in orders.items()}
    plan = make_plan(config.curriculum, batches, lengths, comm.world_size, done)
    if config.stores.stage_to:
        console.line(f"copying each rank's training patches to {config.stores.stage_to}")
    store = open_store(index, config, rows_to_train_on(plan, orders, comm.rank, done), checks=False)
    splits = scoring_splits(config.curriculum, comm.world_size)
    return Session(
        config=config,
        comm=comm,
        console=console,
        index=index,
        store=store,
        orders=orders,
        batches=batches,
        model=model,
        optimizer=optimizer,
        averaged=averaged,
        predict=make_predict(model, comm),
        evaluator=Evaluator(config, index, store, comm, scoring_batches(config.curriculum), splits),
        hashes=hashes,
    )


def check_plateaus(config: Config, index: PatchIndex) -> None:
    """Whether a stage that ends at a plateau has something to score.

    Raises:
      ConfigError: no slide validates.
    """
    stage = next((i for i, s in enumerate(config.curriculum) if s.plateau), None)
    if stage is not None and not len(index.select(config.patch_sizes[-1], "val")):
        raise ConfigError(
            "a plateau is one of scores, and no slide validates",
            where=f"curriculum[{stage}].plateau",
            fix="split.val_fraction=0.2, or give the stage a length in steps or epochs",
        )


def check_splits(config: Config, model: keras.Model) -> None:
    """Whether the network can be trained on the slabs of every stage.

    Raises:
      ModelError: a layer cannot be split, or slabs are too thin for it.
    """
    for stage in config.curriculum:
        for size in stage.size_shares if stage.parallel.spatial > 1 else ():
            check_split(model, size, stage.parallel.spatial)


def training_orders(config: Config, index: PatchIndex) -> dict[tuple[int, int], EpochOrder]:
    """(stage number, patch size) -> the order in which that stage reads its training patches."""
    return {
        (number, size): training_order(config, index, number, size)
        for number, stage in enumerate(config.curriculum)
        for size in stage.size_shares
    }


def training_order(config: Config, index: PatchIndex, number: int, size: int) -> EpochOrder:
    """The order in which one stage reads the training patches of one size; a function of the seed and the stage."""
    rows = index.select(size, "train")
    positive = is_positive(index.label_fractions[rows], config.sampling.min_tumour_fraction)
    listed = config.sampling.hard_negatives
    is_hard = hard_rows(index, rows, listed) if listed else None
    return EpochOrder(rows, positive, config.sampling, (config.seed, number, size), is_hard)


def rows_to_train_on(plan: Plan, orders: Mapping[tuple[int, int], EpochOrder], rank: int, done: Position) -> np.ndarray:
    """[n] index rows that one rank reads in the rest of the curriculum, each once."""
    rows = [np.zeros(0, np.int64)]
    for stage in plan.stages[done.stage :]:
        last = stage.samples_at(stage.end_step)
        for size, first in stage.samples_at(stage.start_step).items():
            count = (last[size] - first) // stage.num_groups
            group = rank // stage.spatial
            rows.append(rows_of_rank(orders[stage.number, size], first, count, group, stage.num_groups))
    return np.unique(np.concatenate(rows))


def config_hash(config: Config) -> str:
    """sha256 of every setting but the place where the run is written."""
    return digest_of(config.model_dump(mode="json", exclude={"output"}))


def index_hash(index: PatchIndex) -> str:
    """A hash of where all patches lie and what they are."""
    columns = (index.slide, index.x, index.y, index.size, index.label_fractions)
    return digest_of([index.fingerprint, *(zlib.crc32(np.ascontiguousarray(c).data) for c in columns)])


def write_settings(config: Config, world_size: int) -> None:
    """Write the run directory's `config.yaml`: every setting, with the number of ranks above them."""
    text = f"{MARK}; trained on {world_size} rank(s)\n{dump_config(config)}"
    replace_content(config.output / "config.yaml", text)
