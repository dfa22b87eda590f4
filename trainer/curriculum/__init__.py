"""Stages of growing patch size, and the one mapping between global step, stage and data position."""

from trainer.curriculum.batches import plan_batches
from trainer.curriculum.plan import START, Batch, Plan, Position, Stage, make_plan

__all__ = ["START", "Batch", "Plan", "Position", "Stage", "make_plan", "plan_batches"]
