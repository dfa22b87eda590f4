"""Workers that take slides, or parts of one, off a list: processes of this machine, or the ranks of an MPI job.

A pool is a function `run(fn, items)` that gives the results in the order they are done, so that who does the work is
not known to those who have it done. `fn` and the items are pickled: module-level functions, plain values.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from trainer.errors import CommError
from trainer.runtime.world import detect_world

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextmanager
def worker_pool(workers: int | None = None) -> Iterator[Run | None]:
    """The pool that fits how this process was started: MPI ranks under mpirun or srun, else local processes.

    None on the ranks that work for rank 0: they come here to work, and leave when rank 0 leaves.
    """
    world = detect_world(os.environ)
    with mpi_pool() if world and world.world_size > 1 else local_pool(workers) as run:
        yield run


@contextmanager
def local_pool(workers: int | None = None) -> Iterator[Run]:
    """Processes of this machine, by default one for each CPU this process may use; a single one is this process.

    They are started afresh (not forked: a fork inherits locks that other threads hold), end with this process however
    it ends, and end at once when the block fails (Ctrl-C).

    Raises:
      CommError: a worker died.
    """
    count = workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        yield partial(_run, executor)
    except BaseException:  # nothing is cancelled first: the executor ends what is left itself when it sees no workers
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown()


@contextmanager
def mpi_pool() -> Iterator[MpiWorkers | None]:
    """The ranks of COMM_WORLD: rank 0 hands out the items, all others work; None on these."""
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    ranks = MPICommExecutor(MPI.COMM_WORLD, root=0)
    executor: Any = ranks.__enter__()  # a working rank stays in here until rank 0 is done
    yield MpiWorkers(executor, MPI.COMM_WORLD.Get_size() - 1) if executor else None
    # not reached when the block fails: leaving would wait for items under way, and the caller's MPI_Abort ends all
    ranks.__exit__(None, None, None)


class MpiWorkers:
    """The pool of rank 0: all other ranks.

    Attributes:
      count: how many they are.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor, self.count = executor, count

    def __call__(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return _run(self._executor, fn, items)

    def in_order(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any]:
        """The results in the order of the items. Twice as many as there are workers are under way or wait to be taken.

        Who closes it before its end waits for what is under way when the pool is left, and for nothing else.
        """
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(fn, item))
                if len(waiting) == 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _run(executor: Executor, fn: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    futures = [executor.submit(fn, item) for item in items]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise CommError(
            "one died without a word; most often the system ended it because memory ran out",
            where="worker processes",
            fix="fewer of them (--workers N), or more memory; what is finished is kept, so run the command again",
        ) from None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A killed parent leaves its workers waiting for work for ever."""
    parent.join()
    os._exit(1)
