"""Run under mpirun by test_faults.py: what the first code of this idea got wrong, asked of real ranks.

The numbers are those of the list in FACTS.md, "The first code of this idea, and what was wrong with it".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from trainer.config import load_config
from trainer.config.schema import IGNORE_LABEL
from trainer.curriculum import START
from trainer.evaluate.tiles import validation_tiles
from trainer.models.keras import tf
from trainer.runtime import start_comm
from trainer.slides.dataset import load_dataset
from trainer.train.checkpoint import digest
from trainer.train.console import Console
from trainer.train.data import places_of_step, stage_batches
from trainer.train.session import configure_tensorflow, open_session, prepare_data
from trainer.train.step import TrainStep, moving_statistics

config = load_config(Path(sys.argv[1]), ["model.norm=batch", "curriculum.0.epochs=1", "curriculum.0.steps=null"])
comm = start_comm(config.runtime.backend)
# A seed of its own on every rank, as an unseeded program has: only what is agreed on can be equal.
configure_tensorflow(config.model_copy(update={"seed": 7 + comm.rank}), 1, comm.local_rank)
np.random.seed(comm.rank)
session = open_session(config, comm, Console(False))
index, stage = session.index, session.plan(START).stages[0]


def passed(fault: int, what: str) -> None:
    print(f"rank {comm.rank} fault {fault}: {what}", flush=True)


assert len(set(comm.gather(digest(session.model, session.optimizer)))) == 1
passed(1, "replicas are equal before the first step")

assert len(set(comm.gather(tuple(s.split for s in index.slides)))) == 1
train, val = (set(map(int, index.select(64, side))) for side in ("train", "val"))
steps = range(stage.num_steps)
mine = [place for step in steps for place in places_of_step(session, stage, step, comm.rank)]
everyone = [place for part in comm.gather(mine) for place in part]
first_epoch = [row for epoch, row in everyone if epoch == 0]
assert sorted(first_epoch) == sorted(train), "each training patch once in an epoch, on one rank"
assert not val & {row for _, row in everyone}
passed(2, "one split, no validation patch is trained on by any rank, no training patch is left out")

sides = [{int(s) for s in index.slide[sorted(rows)]} for rows in (train, val)]
assert not sides[0] & sides[1]
passed(3, "no slide is on both sides")

folder = Path(sys.argv[1]).parent
if comm.rank == 0:
    records = zip(load_dataset(config.data), "aabb", strict=True)
    rows = [f"{r.slide},{r.annotation or ''},{centre}" for r, centre in records]
    (folder / "centres.csv").write_text("\n".join(["slide,annotation,centre", *rows]) + "\n")
comm.barrier()
changes = [f"output={folder / 'centres'}", "data.format=manifest", f"data.path={folder / 'centres.csv'}"]
changes += ["split.train_centres=[a]", "split.val_centres=[b]"]
split_by_centre = prepare_data(load_config(Path(sys.argv[1]), changes), comm, Console(False))
for side, centre in (("train", "a"), ("val", "b")):
    slides = split_by_centre.slide[split_by_centre.select(64, side)]
    assert {split_by_centre.slides[s].centre for s in slides} == {centre}, side
passed(4, "the centres that validate are not those that train")

statistics = [v.numpy() for v in moving_statistics(session.model)]
step = TrainStep(session.model, session.optimizer, config.training, comm)
for number, (images, labels) in zip(range(2), stage_batches(session, stage), strict=False):
    step(images, labels, number)
changed = [(v.numpy() != old).any() for v, old in zip(moving_statistics(session.model), statistics, strict=True)]
assert all(changed)
assert len(set(comm.gather(digest(session.model, session.optimizer)))) == 1
passed(7, "batch norm uses and learns the statistics of the batches it trains on")

assert int(session.optimizer.iterations.numpy()) == 2
passed(10, "gradients are applied once a step")


def exact_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The share of (positive, negative) pairs in the right order; equal ones count half (Mann and Whitney 1947)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    num = int(positive.sum())
    return float((ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(scores) - num)))


def by_darkness(images: np.ndarray, spatial: int = 1) -> tuple[tf.Tensor, tf.Tensor]:
    """Classes and log-odds as a network's, of a rule that needs no training."""
    odds = (128 - tf.reduce_mean(tf.cast(images, tf.float32), -1)) / 16
    return tf.cast(odds > 0, tf.uint8), tf.stack([-odds, odds], -1)


tiles = validation_tiles(index, 64, config.seed, config.evaluation.max_patches)
patches = [session.store.read_at(t.slide, t.x, t.y, t.size) for t in tiles]
images, labels = (np.stack(parts) for parts in zip(*patches, strict=True))
classes, log_odds = (x.numpy() for x in by_darkness(images))
valid = labels != IGNORE_LABEL
truth = labels[valid] == 1
of_all = exact_auc(log_odds[..., 1][valid], truth)
scores = session.evaluator.score_size(by_darkness, 64)
assert abs(scores["auc"] - of_all) < 1e-3, (scores["auc"], of_all)
assert abs(exact_auc(classes[valid], truth) - of_all) > 2e-3, "classes would have given another"
passed(6, "AUC is that of the probabilities of all ranks' patches")
