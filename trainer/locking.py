"""The kernel's file locks, where the file system has them."""

from __future__ import annotations

import errno
import fcntl
import logging
from functools import cache

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def flock(file: int, operation: int) -> None:
    """`fcntl.flock`. On a file system without locks (Lustre without its mount option `flock`) a warning instead.

    Raises:
      BlockingIOError: another process holds it, and the operation has LOCK_NB.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn()


@cache
def _warn() -> None:
    logging.getLogger(__name__).warning(
        "warning: this file system has no locks: nothing keeps two runs from writing the same directory"
    )
