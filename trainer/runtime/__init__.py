"""Ranks, threads and collectives: the only room that knows MPI and Horovod."""

from trainer.runtime.comm import Comm, SingleComm, on_root
from trainer.runtime.start import start_comm
from trainer.runtime.world import World, detect_world

__all__ = ["Comm", "SingleComm", "World", "detect_world", "on_root", "start_comm"]
