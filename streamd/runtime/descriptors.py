"""The process's limit on open files, raised as far as its user may."""

from __future__ import annotations

import contextlib
import resource

ENOUGH = 65_536
"""Far above what cameras, subscribers and workers need; a system without a limit names a billion, over which some
programs loop at their start."""


def raise_limit() -> None:
    """Raises the soft limit to the hard limit, or to `ENOUGH`. The usual soft limit of 1,024 dates from select().

    To be called before workers and decoder processes start, since they inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
