"""Run under mpirun by test_survival.py: `widefield train` where rank 1 gets other settings, or a bit flips there."""

from __future__ import annotations

import os
import sys

import numpy as np

from trainer.cli.main import main
from trainer.train import loop
from trainer.train.run import Run

config, what = sys.argv[1:]
is_second = os.environ["OMPI_COMM_WORLD_RANK"] == "1"
log_step = loop.log_step


def flip_a_bit_at_step_3(run: Run, stage: object, step: int, *rest: object) -> None:
    if step == 2:
        variable = run.session.model.trainable_variables[0]
        variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))
    log_step(run, stage, step, *rest)


if is_second and what == "weights":
    loop.log_step = flip_a_bit_at_step_3
main(["train", config, "--overwrite", f"seed={4 if is_second and what == 'settings' else 3}"])
