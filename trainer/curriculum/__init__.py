"""Stages of growing patch size, and the one mapping between global step, stage and data position."""

from trainer.curriculum.plan import Plan, Stage, make_plan

__all__ = ["Plan", "Stage", "make_plan"]
