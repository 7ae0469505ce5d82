"""The streams of one of several daemons with the same configuration."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

from streamd.errors import ConfigError
from streamd.fleet import ShareSettings
from streamd.fleet.placement import Box, Demand, place


def index_of(share: ShareSettings, host: str | None = None) -> int:
    """The number of this daemon. `host`: name of this machine, by default as the system knows it.

    Raises:
        ConfigError: there is none, or it is not below `share.count`.
    """
    index = share.index
    if index == "auto":
        host = socket.gethostname() if host is None else host
        number = re.search(r"-(\d{1,9})$", host.partition(".")[0])
        if number is None:
            raise ConfigError(
                f"share.index: auto takes the number at the end of the host name, and {host!r} has none; "
                "set the number (0 for the first daemon)"
            )
        index = int(number[1])
    if index >= share.count:
        raise ConfigError(f"share.index: {index} is not below share.count ({share.count}); the first daemon is 0")
    return index


def own_share(share: ShareSettings, streams: Sequence[str], host: str | None = None) -> frozenset[str]:
    """The ids of the streams that this daemon serves.

    Every daemon comes to the same division, as even as hashing with bounded loads makes it. One daemon more or less
    moves about one stream in `count`; since nobody remembers the division before, some others move as well.

    Raises:
        ConfigError: see `index_of`.
    """
    own = str(index_of(share, host))
    boxes = [Box(str(i), 1e9, len(streams)) for i in range(share.count)]
    placement = place([Demand(name, 1.0) for name in streams], boxes)
    return frozenset(name for name, box in placement.box_of.items() if box == own)
