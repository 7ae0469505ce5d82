"""Links between tracks: the tracker gave an object a new id, often just where boxes overlap or turn."""

from __future__ import annotations

from collections.abc import Sequence

from streamd.analysis.rules.group import Group
from streamd.analysis.rules.tracks import FIRST, FRAME, X1, Y2, Tracks


class Links:
    """Which new track continues which unseen one. A link is kept until one of them ends or the old one is seen again.

    Args:
        tracks: tracks of the stream.
    """

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self.elder: dict[int, int] = {}
        """Slot of the unseen track, by that of the new one."""
        self.heir: dict[int, int] = {}
        """The other way round."""

    def find(self, born: Sequence[int], groups: Sequence[Group], now: float, number: int) -> None:
        """Determines which of the new tracks continue a lost one.

        Args:
            born: slots of the new tracks.
            groups: their lines' state is passed on to the new tracks.
            now: seconds.
            number: number of the frame.
        """
        unseen = [slot for slot in self._tracks.unseen(now, number) if slot not in self.heir]
        if not unseen:
            return
        found = [(slot, self._tracks.predecessor(slot, unseen, now)) for slot in born]
        elders = [link[0] for _, link in found if link is not None]
        for slot, link in found:
            if link is None or link[0] in self.heir:
                continue
            elder, sure = link
            sure &= elders.count(elder) == 1
            self.elder[slot], self.heir[elder] = elder, slot
            for group in groups:
                box = self._tracks.rows[slot, X1 : Y2 + 1].tolist()
                group.lines.inherit(elder, slot, group.anchor_of(box), box[3] - box[1], now, sure=sure)

    def check(self, groups: Sequence[Group], number: int) -> None:
        """Ends the links to tracks that were seen again in frame `number`."""
        rows = self._tracks.rows
        for heir, elder in list(self.elder.items()):
            if rows[elder, FRAME] == number:
                del self.elder[heir], self.heir[elder]
                for group in groups:
                    group.lines.disown(elder, heir, float(rows[heir, FIRST]))

    def forget(self, slot: int) -> None:
        """A track has ended for good."""
        if (elder := self.elder.pop(slot, None)) is not None:
            del self.heir[elder]
        if (heir := self.heir.pop(slot, None)) is not None:
            del self.elder[heir]
