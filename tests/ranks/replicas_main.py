"""Run under mpirun by test_training.py: start with different weights on purpose, train, and compare bits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from trainer.config import load_config
from trainer.curriculum import START
from trainer.errors import CommError
from trainer.runtime import start_comm
from trainer.train.agreement import require_agreement
from trainer.train.checkpoint import Progress, digest
from trainer.train.console import Console
from trainer.train.data import stage_batches
from trainer.train.not_finite import LossNotFinite, require_finite
from trainer.train.session import configure_tensorflow, open_session
from trainer.train.step import TrainStep

config = load_config(Path(sys.argv[1]), sys.argv[2:])
comm = start_comm(config.runtime.backend)
# A seed of its own on every rank: only the broadcast can make the replicas equal.
seed = 3 + comm.rank
configure_tensorflow(config.model_copy(update={"seed": seed}), 1, comm.local_rank)
session = open_session(config, comm, Console(False))
assert len(set(comm.gather(digest(session.model, session.optimizer)))) == 1

stage = session.plan(START).stages[0]
step = TrainStep(session.model, session.optimizer, config.training, comm)
before = digest(session.model)
rows = []
for number, (images, labels) in enumerate(stage_batches(session, stage)):
    result = step(images, labels, number, stop=comm.rank == 1 and number == 2)
    assert result.stop_requested == (number == 2), "one rank's wish to stop reaches all at the same step"
    assert len(set(comm.gather(result.loss))) == 1, "the loss is that of all ranks"
    assert len(set(comm.gather(digest(session.model, session.optimizer)))) == 1, "equal after every step"
    rows.append(images.tobytes())
assert digest(session.model) != before, "the network must have learned something"
assert len({r for part in comm.gather(rows) for r in part}) == stage.num_steps * comm.world_size, (
    "no two ranks saw the same batch"
)
applied = int(session.optimizer.iterations.numpy())
assert applied == stage.num_steps, "the gradients are applied once per step"

if comm.rank == 1:
    variable = session.model.trainable_variables[0]
    variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
try:
    require_agreement(comm, {"weights": digest(session.model, session.optimizer)}, "in this test")
except CommError as error:
    assert "rank 1 (" in str(error) and "weights" in str(error)
else:
    raise AssertionError("one changed bit on one rank must be found on all")

comm.broadcast_variables(session.model.variables)
labels[:] = 99 if comm.rank == 1 else labels  # no such class: the loss is not a number there
assert np.isnan(step(images, labels, stage.num_steps).loss), "all ranks know what one rank's loss is"
assert len(set(comm.gather(digest(session.model)))) == 1
require_finite(session.model, stage, Progress(START, comm.world_size))
session.model.trainable_variables[0].assign(np.full(session.model.trainable_variables[0].shape, np.nan))
try:
    require_finite(session.model, stage, Progress(START, comm.world_size))
except LossNotFinite:
    pass
else:
    raise AssertionError("a network that is not finite must not be scored")
print(f"rank {comm.rank} ok", flush=True)
sys.stdout.flush()
