"""Retention over real files, with a real journal."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from streamd.events.evidence.files import PARTIAL
from streamd.events.evidence.keeper import MediaKeeper, MediaLimits
from streamd.events.journal import Journal
from streamd.events.query import Filter
from streamd.events.record import Media
from tests.events.journals import event, journal, until

DAY = 86_400.0
NO_LIMITS = MediaLimits(1 << 60, 1e9, 0)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def make(one: Journal, folder: Path, name: str, age_s: float, *endings: str, size: int = 100_000) -> None:
    """An event whose files are so old."""
    one.submit(event(name, "instant"))
    for number, ending in enumerate(endings or (".mp4", ".json")):
        path = folder / "a" / "2027-01-15" / f"080000.000-{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age_s,) * 2)
        one.link(name, ("clip", "clip_json", "snapshot")[number], Media(str(path)))
    assert one.flush()


def states(one: Journal, role: str = "clip") -> dict[str, str]:
    assert one.flush()
    return {r.id: r.media[role].state for r in one.find(Filter())}


def test_the_oldest_go_first_and_whole(tmp_path: Path) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        for number in range(5):
            make(one, media, f"e{number}", 100 - number, ".mp4", ".2.mp4", ".json")
        keeper = MediaKeeper(media, NO_LIMITS._replace(max_bytes=1_000_000), one)
        keeper.keep()
        assert files(media) == [f"080000.000-e{n}{end}" for n in (2, 3, 4) for end in (".2.mp4", ".json", ".mp4")]
        assert states(one) == {"e0": "deleted", "e1": "deleted", "e2": "written", "e3": "written", "e4": "written"}
        assert one.find(Filter(ids=["e0"]))[0].media["clip"].reason == "retention"
        assert keeper.counts.removed == 2
        assert keeper.counts.files == 9
        assert 900_000 <= keeper.counts.bytes <= 1_000_000
        keeper.keep()
        assert keeper.counts.removed == 2


def test_age_counts_only_with_a_clock_that_can_be_trusted(tmp_path: Path) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        make(one, media, "old", 31 * DAY)
        make(one, media, "new", 29 * DAY)
        keeper = MediaKeeper(media, NO_LIMITS._replace(max_age_s=30 * DAY), one)
        keeper.keep(ages=False)
        assert len(files(media)) == 4
        keeper.keep()
        assert states(one) == {"old": "deleted", "new": "written"}
        assert len(files(media)) == 2


@pytest.mark.parametrize("wrong", [-5 * 365 * DAY, 40 * 365 * DAY])
def test_what_a_wrong_clock_has_stamped_is_as_old_as_its_discovery(tmp_path: Path, wrong: float) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        make(one, media, "wrong", wrong)
        make(one, media, "right", 29 * DAY)
        keeper = MediaKeeper(media, NO_LIMITS._replace(max_age_s=30 * DAY), one)
        keeper.keep(ages=False)
        first = [path for path in media.rglob("*wrong*") if path.is_file()]
        assert first
        assert all(abs(path.stat().st_mtime - (time.time() - wrong)) < 60 for path in first), "not yet"
        keeper.keep()
        assert all(abs(path.stat().st_mtime - time.time()) < 60 for path in first)
        # The oldest goes first where there is no room.
        keeper = MediaKeeper(media, NO_LIMITS._replace(max_bytes=sum(p.stat().st_blocks * 512 for p in first)), one)
        keeper.keep(ages=False)
        assert states(one) == {"wrong": "written", "right": "deleted"}


def test_what_is_being_written_stays_and_what_nobody_writes_goes(tmp_path: Path) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        make(one, media, "open", 1000.0, f".mp4{PARTIAL}")
        make(one, media, "left", 2 * DAY, f".mp4{PARTIAL}")
        (media / "link").symlink_to(tmp_path / "state")
        MediaKeeper(media, NO_LIMITS._replace(max_bytes=0), one).keep()
        assert files(media) == [f"080000.000-open.mp4{PARTIAL}"]
        assert (tmp_path / "state" / "events.db").exists()


def test_space_is_freed_for_the_floor(tmp_path: Path) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        for number in range(5):
            make(one, media, f"e{number}", 100 - number)
        keeper = MediaKeeper(media, NO_LIMITS, one)
        keeper.keep(missing=300_000)
        assert list(states(one).values()) == ["deleted"] * 2 + ["written"] * 3
        assert keeper.counts.problem == ""
        keeper.keep(missing=1 << 40)
        assert files(media) == []
        assert keeper.counts.problem.startswith("disk_full")
        keeper.keep()
        assert keeper.counts.problem == "", "it recovers"


def test_the_thread_settles_what_a_dead_process_left(tmp_path: Path) -> None:
    media = tmp_path / "media"
    folder = media / "a" / "2027-01-15"
    folder.mkdir(parents=True)
    with journal(tmp_path / "state") as one:
        for name in ("torn", "whole", "nothing"):
            one.submit(event(name))
            one.link(name, "clip", Media(str(folder / f"080000.000-{name}.mp4"), "pending"))
        one.submit(event("done"))
        one.link("done", "clip", Media(str(folder / "080000.000-done.mp4")))
        (folder / f"080000.000-torn.mp4{PARTIAL}").write_bytes(b"fragments")
        (folder / f"080000.000-torn.json{PARTIAL}").write_bytes(b"{")
        (folder / f"080000.000-torn-2.mp4{PARTIAL}").write_bytes(b"of another event")
        (folder / "080000.000-whole.mp4").write_bytes(b"renamed just before the end")
        # A clip of two parts that two events share, one of which waits for its first picture, too.
        for name in ("first", "second"):
            one.submit(event(name))
            one.link(name, "clip", Media(str(folder / "080000.000-first.mp4"), "pending"))
        one.link("first", "a_snapshot", Media(str(folder / "080000.000-first.jpg"), "pending"))
        for name in ("mov", "2.mov", "jpg"):
            (folder / f"080000.000-first.{name}{PARTIAL}").write_bytes(b"fragments")
        assert one.flush()
        keeper = MediaKeeper(media, NO_LIMITS, one)
        keeper.start()
        until(lambda: "pending" not in states(one).values())
        assert keeper.close(5)
        found = {r.id: r.media["clip"] for r in one.find(Filter())}
        assert found["torn"] == Media(str(folder / "080000.000-torn.incomplete.mp4"), "failed", "process_died")
        assert found["whole"].path.endswith("-whole.mp4")
        assert found["nothing"].reason == "process_died"
        both = [str(folder / f"080000.000-first{number}.incomplete.mov") for number in ("", ".2")]
        for record in one.find(Filter(ids=["first", "second"])):
            assert [record.media[role].path for role in ("clip", "clip_2")] == both
            assert {each.state for each in record.media.values()} == {"failed"}
        assert one.find(Filter(ids=["first"]))[0].media["a_snapshot"].path.endswith("-first.jpg")
        for path in both:
            os.unlink(path)
        assert files(media) == [
            f"080000.000-torn-2.mp4{PARTIAL}", "080000.000-torn.incomplete.mp4", "080000.000-whole.mp4"
        ]  # fmt: skip


def test_only_the_streams_of_a_dead_worker_are_settled(tmp_path: Path) -> None:
    with journal(tmp_path / "state") as one:
        keeper = MediaKeeper(tmp_path / "media", NO_LIMITS, one)
        keeper.start()
        until(lambda: not keeper._lost)
        for stream in ("a", "b"):
            one.submit(event(stream, stream=stream))
            one.link(stream, "clip", Media(str(tmp_path / f"{stream}.mp4"), "pending"))
        assert one.flush()
        keeper.lost(["a"], "worker_died")
        until(lambda: states(one)["a"] == "failed")
        assert states(one)["b"] == "pending"
        assert one.find(Filter(ids=["a"]))[0].media["clip"].reason == "worker_died"
        assert keeper.close(5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    media = tmp_path / "media"
    with journal(tmp_path / "state") as one:
        make(one, media, "e", 100.0)
        folder = media / "a" / "2027-01-15"
        folder.chmod(0o500)
        keeper = MediaKeeper(media, NO_LIMITS._replace(max_bytes=0), one)
        with pytest.raises(PermissionError):
            keeper.keep()
        folder.chmod(0o700)
        keeper.keep()
        assert files(media) == []


def test_a_folder_in_which_nothing_can_be_made_is_told_before_the_first_event(tmp_path: Path) -> None:
    """A file stands in the way, since root may write anywhere."""
    (tmp_path / "disk").touch()
    with journal(tmp_path / "state") as one:
        keeper = MediaKeeper(tmp_path / "disk" / "media", NO_LIMITS, one)
        keeper.start()
        until(lambda: keeper.counts.problem == f"{tmp_path}/disk is not a folder; expected one")
        (tmp_path / "disk").unlink()
        until(lambda: not keeper.counts.problem)
        assert keeper.close(5)
