"""The streams of one of several daemons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamd.cli import main
from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.fleet import ShareSettings
from streamd.fleet.share import index_of, own_share

NAMES = [f"camera-{i}" for i in range(300)]


def test_shares_are_disjoint_even_and_whole() -> None:
    shares = [own_share(ShareSettings(index=i, count=4), NAMES) for i in range(4)]
    assert sum(map(len, shares)) == len(NAMES)
    assert frozenset().union(*shares) == set(NAMES)
    assert all(60 <= len(share) <= 83 for share in shares)
    assert own_share(ShareSettings(index=0, count=1), NAMES) == set(NAMES)


def test_one_daemon_more_moves_few() -> None:
    def box_of(count: int) -> dict[str, int]:
        return {name: i for i in range(count) for name in own_share(ShareSettings(index=i, count=count), NAMES)}

    before, after = box_of(4), box_of(5)
    assert sum(before[name] != after[name] for name in NAMES) < 0.45 * len(NAMES)


@pytest.mark.parametrize(("host", "index"), [("streamd-0", 0), ("streamd-2", 2), ("edge-box-1.site.example", 1)])
def test_the_number_at_the_end_of_the_host_name(host: str, index: int) -> None:
    assert index_of(ShareSettings(count=3), host) == index


@pytest.mark.parametrize(
    ("share", "host", "message"),
    [
        (ShareSettings(count=3), "box", "'box' has none; set the number"),
        (ShareSettings(count=3), "box-3", r"3 is not below share.count \(3\)"),
        (ShareSettings(index=1, count=1), "box-0", "1 is not below share.count"),
    ],
)
def test_a_number_that_cannot_be(share: ShareSettings, host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        index_of(share, host)


def test_the_configuration_has_the_streams_of_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    values = {"model": {"path": "m.onnx"}, "streams": [{"kind": "synthetic", "id": name} for name in NAMES]}
    file.write_text(json.dumps(values | {"share": {"index": 2, "count": 4}}))
    own = own_share(ShareSettings(index=2, count=4), NAMES)
    served = [name for name in NAMES if name in own]
    assert [s.id for s in load(file).config.streams] == served
    assert main(["check", "--no-model", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"share of 4: {', '.join(served)}"
    file.write_text(json.dumps(values | {"share": {"index": 4, "count": 4}}))
    with pytest.raises(ConfigError, match=r"c\.yaml:1: share\.index: 4 is not below"):
        load(file)
