from __future__ import annotations

import time
from pathlib import Path

import pytest

from streamd.errors import NoAnswerError, SinkError
from streamd.events import requests, schema, upkeep
from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from streamd.events.record import Media
from streamd.events.upkeep import Limits
from tests.events.journals import T0, event, journal, rows, until


def at(second: float) -> int:
    return T0 + int(second * 1e9)


def fill(one: Journal, folder: Path) -> dict[str, Path]:
    """x from 0 to 10 and y from 12 to 20 share a clip; z is at 30, o is open since 40; the same in stream b."""
    files = {}
    links = (("x", "clip", "shared"), ("y", "clip", "shared"), ("y", "snapshot", "y"), ("z", "clip", "z"))
    for stream in ("a", "b"):
        for id_, began, ended in (("x", 0, 10), ("y", 12, 20)):
            one.submit(event(id_ + stream, "begin", began, stream=stream))
            one.submit(event(id_ + stream, "end", ended, stream=stream))
        one.submit(event("z" + stream, "instant", 30, stream=stream, label="car", rule="yard"))
        one.submit(event("o" + stream, "begin", 40, stream=stream))
        for id_, role, name in links:
            path = files[name + stream] = folder / f"{name}-{stream}.mp4"
            path.write_bytes(b"film")
            one.link(id_ + stream, role, Media(str(path)))
    assert one.flush()
    return files


@pytest.mark.parametrize(
    ("since", "until_", "gone", "files"),
    [
        (5, 6, "x", {"shared"}), (10, 12, "x", {"shared"}), (11, 12, "", set()), (0, 13, "xy", {"shared", "y"}),
        (30, 30.1, "z", {"z"}), (29, 30, "", set()), (100, 200, "o", set()), (0, 1000, "xyzo", {"shared", "y", "z"}),
    ],
)  # fmt: skip
def test_what_overlaps_the_span_goes_whole(
    tmp_path: Path, since: float, until_: float, gone: str, files: set[str]
) -> None:
    with journal(tmp_path / "state") as one:
        cursor = one.cursor("mqtt", oldest=True)
        paths = fill(one, tmp_path)
        done = one.delete("a", at(since), at(until_))
        sizes = {"x": 2, "y": 2, "z": 1, "o": 1}
        assert done.events == done.pending == sum(sizes[id_] for id_ in gone)
        assert set(done.paths) == {str(paths[name + "a"]) for name in files}
        left = {r.id for r in one.find(Filter())}
        assert left == {i + "a" for i in "xyzo" if i not in gone} | {i + "b" for i in "xyzo"}
        assert cursor.counts()._replace(accepted=0, queued=0) == (0, 0, 0, 0, 0, done.events)
        assert len(cursor.read(100)) == cursor.counts().queued == 12 - done.events
        until(lambda: not any(Path(path).exists() for path in done.paths))
        until(lambda: rows(tmp_path / "state", "SELECT * FROM removals") == [])
        assert {p.name for p in tmp_path.glob("*.mp4")} == {p.name for p in paths.values()} - {
            Path(path).name for path in done.paths
        }
        if gone == "x":
            (y, _) = one.find(Filter(ids=["ya"]))
            assert y.clip is None, "the clip that it shared is gone"
            assert (y.media["clip"].state, y.media["clip"].reason) == ("deleted", "deleted")
            assert y.snapshot is not None


def test_nothing_of_it_can_be_read_from_the_disk(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        for number in range(200):
            one.submit(event(f"x{number}", details={"plate": "KENNZEICHEN"}))
        assert one.flush()
        one.submit(event("y", stream="b"))
        one.delete("a", 0, at(1000))

        def held() -> bool:
            return any(b"KENNZEICHEN" in path.read_bytes() for path in tmp_path.glob(f"{JOURNAL}*"))

        until(lambda: not held())
        assert [r.id for r in one.find(Filter())] == ["y"]


def test_what_still_comes_of_a_deleted_event_is_not_kept(tmp_path: Path) -> None:
    seen: list[str] = []
    with journal(tmp_path / "state") as one:
        one.listen(lambda records: seen.extend(r.id for r in records))
        one.submit(event("x", "begin", 0))
        assert one.flush()
        one.delete("a", 0, at(1))
        late = tmp_path / "late.mp4"
        late.write_bytes(b"film")
        one.submit(event("x", "update", 5))
        one.submit(event("x", "end", 6))
        one.link("x", "clip", Media(str(late)))
        one.submit(event("y", at_s=7))
        assert one.flush()
        assert [(r.id, r.event_seq, r.events_lost) for r in one.find(Filter())] == [("y", 2, 0)]
        assert seen == ["x", "y"]
        assert one.open_events() == []
        until(lambda: not late.exists())
        assert one.status()._replace(since=0, log_id="") == ("", 0, "", 0, 2, 0, 0, 0, 0, 0)


def test_a_clip_under_way_that_a_later_event_joins_is_not_kept_for_it_either(tmp_path: Path) -> None:
    clip, beside = tmp_path / "c.mp4", tmp_path / "c.json"
    with journal(tmp_path / "state") as one:
        one.submit(event("x", "begin", 0))
        one.link("x", "clip", Media(str(clip), "pending"))
        assert one.flush()
        one.delete("a", 0, at(1))
        one.submit(event("y", "begin", 7))
        one.link("y", "clip", Media(str(clip), "pending"))
        assert one.flush()
        clip.write_bytes(b"film")
        beside.write_bytes(b"{}")
        for id_ in ("x", "y"):
            one.link(id_, "clip", Media(str(clip)))
            one.link(id_, "clip_json", Media(str(beside)))
        assert one.flush()
        until(lambda: not clip.exists() and not beside.exists())
        [record] = one.find(Filter())
        assert record.id == "y"
        assert {role: (m.state, m.reason) for role, m in record.media.items()} == {
            "clip": ("deleted", "deleted"), "clip_json": ("deleted", "deleted")
        }  # fmt: skip


def test_what_waits_for_its_commit_is_deleted_too(tmp_path: Path) -> None:
    """Added and deleted in one transaction: it is never handed out."""
    seen: list[str] = []
    one = Journal(tmp_path)
    one.listen(lambda records: seen.extend(r.id for r in records))
    one.submit(event("x", at_s=0))
    one.submit(event("y", at_s=50))
    future = one._writer.ask_to_delete("a", at(0), at(1))
    one.start()
    assert future.result(5).events == 1
    assert one.flush()
    assert seen == ["y"]
    one.close()


def test_files_of_a_deletion_before_a_crash_are_removed_by_the_next_start(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    with journal(tmp_path / "state") as one:
        assert one.flush()
    connection = schema.open_writer(tmp_path / "state" / JOURNAL)
    connection.executemany("INSERT INTO removals VALUES (?)", [(str(film),), (str(tmp_path),), ("/none/at/all",)])
    connection.close()
    with journal(tmp_path / "state"):
        until(lambda: not film.exists())
        until(lambda: rows(tmp_path / "state", "SELECT * FROM removals") == [])
    assert tmp_path.is_dir(), "only files are removed"


def test_files_outlive_rows_and_are_still_found_by_time(tmp_path: Path) -> None:
    with journal(tmp_path / "state") as one:
        paths = fill(one, tmp_path)
        one._writer.do(lambda store: upkeep.retain(store, Limits(1e9, 0), {}, time.time_ns(), ages=False))
        assert one.flush()
        assert one.find(Filter()) == []
        assert one.delete("a", at(15), at(16)).paths == [str(paths["shareda"]), str(paths["ya"])]
        one.forget_media([str(paths["za"])])
        assert one.flush()
        assert one.delete("a", at(0), at(35)).paths == []
        assert one.delete(None, at(0), at(35)).paths == [str(paths[n + "b"]) for n in ("shared", "y", "z")]


def test_retention_of_files_is_told_of_the_event(tmp_path: Path) -> None:
    with journal(tmp_path) as one:
        one.submit(event("x"))
        one.link("x", "clip", Media("/m/x.mp4", "pending"))
        assert one.flush()
        assert one.find(Filter())[0].clip is None
        one.link("x", "clip", Media("/m/x.mp4"))
        assert one.flush()
        assert one.find(Filter())[0].clip == "/m/x.mp4"
        one.forget_media(["/m/x.mp4"])
        assert one.flush()
        assert one.find(Filter())[0].media == {"clip": Media("/m/x.mp4", "deleted", "retention")}
        one.link("x", "clip", Media("/m/x.mp4", "failed", "worker_died"))


def test_the_command_line_asks_the_daemon_that_holds_the_journal(tmp_path: Path) -> None:
    with journal(tmp_path / "state") as one:
        paths = fill(one, tmp_path)
        done = requests.ask(tmp_path / "state", requests.DeleteRequest("a", at(0), at(11)), 10)
        assert (done.events, done.paths) == (2, [str(paths["shareda"])])
        place = tmp_path / "state" / requests.FOLDER
        (place / "bad.request").write_text("{}")
        until(lambda: (place / "bad.answer").exists())
        assert "not a request" in (place / "bad.answer").read_text()
        (place / "bad.answer").unlink()
        assert list(place.iterdir()) == []
    with pytest.raises(NoAnswerError, match=r"has not answered within 0\.2 s"):
        requests.ask(tmp_path / "state", requests.DeleteRequest("a", 0, 1), 0.2)
    assert list(place.iterdir()) == []
    with pytest.raises(SinkError, match="run this as the daemon's user"):
        requests.ask(tmp_path / "none", requests.DeleteRequest("a", 0, 1), 0.2)
