"""`streamd events` as its users meet it."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamd.cli.events import moment, table
from streamd.config import Config
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from streamd.events.record import Media
from streamd.events.schema import set_aside
from streamd.runtime.eventlog import state_dir
from streamd.runtime.recorder.place import config_name
from tests.events.journals import T0, event, journal, rows, until


def streamd(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamd", "events", *map(str, arguments)]
    variables = {**os.environ, "STATE_DIRECTORY": "/none", "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=variables)


def fill(folder: Path) -> None:
    with journal(folder) as one:
        for number in range(5):
            details = {"direction": "in", "dwell_s": 2.25, "text": "\x1b[31m" if number == 4 else "plain"}
            one.submit(
                event(
                    f"x{number}",
                    at_s=number * 60,
                    stream="ab"[number % 2],
                    label="carp"[: 3 + number % 2],
                    details=details,
                )
            )
        one.link("x0", "clip", Media(str(folder / "clip.mp4")))
        (folder / "clip.mp4").write_bytes(b"film")
        assert one.flush()


def stamp(second: float) -> str:
    at = datetime.datetime.fromtimestamp(T0 / 1e9 + second, datetime.timezone.utc)
    return at.isoformat().replace("+00:00", "Z")


def test_the_table_fits_80_columns_and_obeys_nobody(tmp_path: Path) -> None:
    fill(tmp_path)
    done = streamd(tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    assert done.stdout.count("line_crossed") == 5
    assert done.stdout.count("clip") == 1
    assert done.stdout.count("in, dwell 2.2 s, ") == 5
    assert "no events" in streamd(tmp_path, "--until", "2020-01-01").stdout


def test_an_event_takes_one_or_two_lines_of_80_columns_and_no_word_is_lost(tmp_path: Path) -> None:
    details = {"direction": "out", "score": 0.81, "certain": False}
    with journal(tmp_path) as one:
        for number, stream in enumerate(("motorway", "a-camera-with-a-rather-long-name-of-42-letters")):
            one.submit(event(f"x{number}", at_s=number, stream=stream, rule="all-lanes", label="car", details=details))
            for role in ("clip", "snapshot"):
                one.link(f"x{number}", role, Media(str(tmp_path / "x")))
        assert one.flush()
    shown = streamd(tmp_path).stdout.splitlines()
    day, head, _, first, second, *more = shown
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day.strip())
    assert max(map(len, shown)) <= 80
    at = head.index("details")
    assert re.fullmatch(r"\d\d:\d\d:\d\d motorway +line_crossed all-lanes car +out, score 0\.81, *", first)
    assert second.strip() == "uncertain, clip, snapshot"
    column = slice(head.index("stream"), head.index("event"))
    assert "".join(line[column].strip() for line in more) == "a-camera-with-a-rather-long-name-of-42-letters"
    assert " ".join(line[at:].strip() for line in more).strip() == "out, score 0.81, uncertain, clip, snapshot"
    # Of several days, each event tells its own.
    with journal(tmp_path) as one:
        one.submit(event("y", at_s=100_000))
        assert one.flush()
    shown = streamd(tmp_path).stdout.splitlines()
    assert max(map(len, shown)) <= 80
    assert len([line for line in shown if re.match(r"\d\d-\d\d \d\d:\d\d:\d\d ", line)]) == 3


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_whatever_is_long_the_table_fits_and_nothing_is_left_out(tmp_path: Path, width: int) -> None:
    names: dict[str, Any] = {"stream": "camera-" + "X" * 50, "rule": "zone-" + "Y" * 50, "label": "label-" + "Z" * 50}
    with journal(tmp_path) as one:
        for number in (0, 1):
            one.submit(event(f"x{number}", at_s=number * 100_000, details={"text": "W" * 70}, **names))
        assert one.flush()
        records = one.find(Filter())
    console = Console(file=io.StringIO(), width=width)
    console.print(table(records, width=console.width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    assert [shown.count(letter) for letter in "XYZW"] == [100, 100, 100, 140]


def test_details_are_told_in_a_few_words(tmp_path: Path) -> None:
    seconds = {"dwell_s": 3.52, "observed_s": 3.5, "unseen_s": 0.0}
    details = {"score": 0.1441, **seconds, "direction": "left", "certain": False, "state": "dark"}
    with journal(tmp_path) as one:
        one.submit(event("x", details=details))
        for role in ("clip", "clip_json"):
            one.link("x", role, Media(str(tmp_path / role)))
        one.link("x", "snapshot", Media(str(tmp_path / "snapshot"), state="pending"))
        assert one.flush()
    told = " ".join(streamd(tmp_path).stdout.split())
    assert "left, score 0.14, dwell 3.5 s, uncertain, state=dark, clip, snapshot pending" in told
    assert json.loads(streamd(tmp_path, "--json").stdout)["details"] == details


def test_filters_and_json(tmp_path: Path) -> None:
    fill(tmp_path)

    def seen(*options: object) -> list[str]:
        done = streamd(tmp_path, "--json", *options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["id"] for line in done.stdout.splitlines()]

    assert seen() == ["x0", "x1", "x2", "x3", "x4"]
    assert seen("--limit", 2) == ["x3", "x4"]
    assert seen("--since", stamp(60), "--until", stamp(180)) == ["x1", "x2"]
    assert seen("--stream", "a", "--label", "car") == ["x0", "x2", "x4"]
    assert seen("--rule", "none", "--kind", "begin") == []


def test_the_journal_is_found(tmp_path: Path) -> None:
    fill(tmp_path / "yard")
    (tmp_path / "conf").mkdir()
    config = tmp_path / "conf" / "yard.yaml"
    config.write_text("streams: []\n")
    state = {"STATE_DIRECTORY": str(tmp_path)}
    for arguments in ((), (config,), ("--state-dir", tmp_path / "yard"), (tmp_path / "yard",), (tmp_path,)):
        assert streamd("--limit", 1, *arguments, **state).returncode == 0
    fill(tmp_path / "gate")
    done = streamd(**state)
    assert done.returncode == 2
    assert f"several journals in {tmp_path}; name one of {tmp_path}/gate, {tmp_path}/yard" in done.stderr
    done = streamd(tmp_path / "conf")
    assert done.returncode == 2
    assert f"no journal (events.db) in {tmp_path}/conf" in done.stderr
    done = streamd(tmp_path / "yrad.yaml")
    assert (done.returncode, f"{tmp_path}/yrad.yaml: does not exist; give a state folder" in done.stderr) == (2, True)


def test_a_configuration_leads_to_its_journal(tmp_path: Path) -> None:
    """Where the daemon would have it, whatever the rest of the file needs."""
    home = tmp_path / "home"
    config = tmp_path / "the yard.yaml"
    named = "events: {state_dir: here}\nstreams: [{id: a, url: 'rtsp://u:${NOT_SET_HERE}@h/'}]\n"
    for text, variables, journal_in in (
        (named, {}, tmp_path / "here"),
        (named, {"STATE_DIRECTORY": str(tmp_path / "state")}, tmp_path / "here"),
        ("streams: []\n", {"STATE_DIRECTORY": str(tmp_path / "state")}, tmp_path / "state" / "the_yard"),
        ("streams: []\n", {"STATE_DIRECTORY": "", "XDG_STATE_HOME": str(home)}, home / "streamd" / "the_yard"),
    ):
        config.write_text(text)
        if not journal_in.exists():
            refused = streamd(config, **variables)
            assert refused.returncode == 2
            assert f"{journal_in}; name the state folder" in refused.stderr
            fill(journal_in)
        settings = Config.model_validate(
            {"model": {"path": "none"}, "streams": [{"id": "a", "kind": "synthetic"}]}
            | ({"events": {"state_dir": str(journal_in)}} if text == named else {})
        )
        assert state_dir(settings, config_name(config), variables) == journal_in, "the daemon's place"
        done = streamd("--json", config, **variables)
        assert len(done.stdout.splitlines()) == 5, done.stderr
    config.write_text("events: [\n")
    done = streamd(config)
    assert done.returncode == 2
    assert f"events: {config}: line 2: not valid YAML" in done.stderr


def test_following(tmp_path: Path) -> None:
    fill(tmp_path)
    command = [sys.executable, "-m", "streamd", "events", str(tmp_path), "--json", "--follow", "--limit", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == "x4"
    with journal(tmp_path) as one:
        for number in range(3):
            one.submit(event(f"y{number}"))
        assert [json.loads(process.stdout.readline())["id"] for _ in range(3)] == ["y0", "y1", "y2"]
    process.terminate()
    process.communicate()


@pytest.mark.parametrize("running", [False, True], ids=["no daemon", "daemon"])
def test_delete(tmp_path: Path, running: bool) -> None:
    fill(tmp_path)
    (tmp_path / f"{JOURNAL}.damaged-20260101T000000.000000Z").touch()
    arguments = ("delete", tmp_path, "--stream", "a", "--since", stamp(0), "--until", stamp(130))
    if running:
        with journal(tmp_path):
            done = streamd(*arguments)
            until(lambda: not (tmp_path / "clip.mp4").exists())
    else:
        done = streamd(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "deleted 2 events, 0 deliveries that waited and 1 files\n"
    assert "a damaged journal may still contain them" in done.stderr
    assert not (tmp_path / "clip.mp4").exists()
    assert rows(tmp_path, "SELECT id FROM events ORDER BY position") == [("x1",), ("x3",), ("x4",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stream", "a"], "give --since and --until"),
        (["--since", "1d", "--until", "1h"], "either --stream or --all-streams"),
        (["--since", "1h", "--until", "1d", "--stream", "a"], "--since is not before --until"),
        (["--since", "1d", "--until", "1h", "--stream", "a", "--label", "x"], "cannot be combined with delete"),
        (["--since", "never", "--until", "1h"], "expected a time as 2026-03-01T12:30"),
        (["one", "two"], "expected one place"),
    ],
)
def test_delete_takes_no_half_orders(tmp_path: Path, options: list[str], message: str) -> None:
    fill(tmp_path)
    done = streamd("delete", tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(rows(tmp_path, "SELECT 1 FROM events")) == 5


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"x" * 8192)
    done = streamd(tmp_path)
    assert done.returncode == 6
    assert "cannot be read: file is not a database" in done.stderr
    set_aside(tmp_path / JOURNAL)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5h", 5400), ("7d", 7 * 86400), ("2w", 14 * 86400)],
)
def test_how_long_ago(text: str, seconds: float) -> None:
    assert abs(time.time_ns() / 1e9 - seconds - moment(text) / 1e9) < 5


@pytest.mark.parametrize(
    ("text", "ns"),
    [("2027-01-15T08:00:00Z", T0), ("2027-01-15T09:00+01:00", T0), ("2027-01-15T08:00:00.25Z", T0 + 250_000_000)],
)
def test_points_in_time(text: str, ns: int) -> None:
    if sys.version_info >= (3, 11) or "." not in text:
        assert moment(text) == ns


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5y", "2027-13-01", "-5m"])
def test_no_time(text: Any) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time"):
        moment(text)
