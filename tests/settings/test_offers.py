"""Which version of the contract a kind of another package was written for, and what becomes of one that is another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from streamd import __version__
from streamd.config.foreign import REGISTRIES
from streamd.settings.offers import elsewhere, offers
from streamd.settings.registry import Registry
from tests.settings.test_registry import Toy, config

GROUP = "streamd.test_toys"
CODE = """
from typing import Literal
from tests.settings.test_registry import Toy

class KiteSettings(Toy):
    kind: Literal["kite"] = "kite"
    made_for: int = VERSION
"""
Install = Callable[..., None]


def written(version: int) -> str:
    made = f"was written for version {version} of the contract ({GROUP}.{version})"
    return f"{made}; this streamd {__version__} offers version 3"


def toys(contract: int) -> Registry[Toy]:
    return Registry("toy", Toy, "streamd.settings", group=GROUP, contract=contract)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package that offers a kite in these groups, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(name: str, *groups: str) -> None:
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        lines = []
        for i, group in enumerate(groups):
            (tmp_path / f"{name}_{i}.py").write_text(CODE.replace("VERSION", str(i)))
            lines += [f"[{group}]", f"kite = {name}_{i}:KiteSettings"]
        (info / "entry_points.txt").write_text("\n".join(lines))

    return installed


@pytest.mark.parametrize(("group", "contract"), [(f"{GROUP}.3", 3), (GROUP, None)])
def test_a_kind_for_this_contract_or_for_none_is_used(install: Install, group: str, contract: int | None) -> None:
    install("toy_kites", group)
    registry = toys(3)
    assert registry.names() == ["kite"]
    ((offer,),) = registry.offers().values()
    assert (offer.contract, offer.problem, offer.package) == (contract, "", "toy_kites 1.5")
    assert "toy_kites_0" not in sys.modules
    assert registry.find("kite").__name__ == "KiteSettings"
    del sys.modules["toy_kites_0"]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (
            f"{GROUP}.4",
            f"{written(4)}; upgrade streamd, or install an older version of the package",
        ),
        (
            f"{GROUP}.2",
            f"{written(2)}; install a newer version of the package, or the streamd that it was written for",
        ),
        (f"{GROUP}.v3", f"has it in the group {GROUP}.v3; expected a number at the end: {GROUP}.3"),
    ],
)
def test_another_contract_is_one_clear_error_and_the_package_is_not_imported(
    install: Install, group: str, words: str
) -> None:
    install("toy_kites", group)
    with pytest.raises(ValidationError) as caught:
        config(toys(3)).model_validate({"toys": [{"kind": "kite"}]})
    (error,) = caught.value.errors()
    assert error["msg"] == f"toy kind kite comes from the package toy_kites 1.5, which {words}"
    assert "toy_kites_0" not in sys.modules


@pytest.mark.parametrize(
    ("groups", "contract", "used"),
    [
        ((f"{GROUP}.1", f"{GROUP}.2"), 1, 0),
        ((f"{GROUP}.1", f"{GROUP}.2"), 2, 1),
        ((GROUP, f"{GROUP}.2"), 2, 1),
        ((GROUP, f"{GROUP}.2"), 3, None),
        ((f"{GROUP}.9", f"{GROUP}.10"), 11, None),
    ],
)
def test_of_one_package_that_knows_several_the_fitting_one_is_used(
    install: Install, groups: tuple[str, ...], contract: int, used: int | None
) -> None:
    install("toy_kites", *groups)
    ((offer,),) = offers(GROUP, contract).values()
    if used is None:
        assert offer.point.group == groups[-1], "the newest is told"
        assert f"offers version {contract}; install a newer version of the package" in offer.problem
    else:
        assert offer.point.module == f"toy_kites_{used}"
        assert not offer.problem


def test_two_packages_with_one_kind_are_refused_whatever_they_were_written_for(install: Install) -> None:
    install("toy_kites", f"{GROUP}.1")
    install("toy_dragons", f"{GROUP}.2")
    with pytest.raises(PydanticCustomError, match=r"several packages \(toy_kites 1.5, toy_dragons 1.5\)"):
        toys(1).find("kite")


def test_a_package_that_was_replaced_by_a_fitting_one_is_found_without_a_restart(
    install: Install, tmp_path: Path
) -> None:
    install("toy_kites", f"{GROUP}.2")
    registry = toys(1)
    with pytest.raises(PydanticCustomError, match="written for version 2"):
        registry.find("kite")
    points = tmp_path / "toy_kites-1.5.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace(f"{GROUP}.2", f"{GROUP}.1"))
    assert registry.find("kite").__name__ == "KiteSettings"
    del sys.modules["toy_kites_0"]


def test_groups_that_streamd_does_not_read_are_found(install: Install) -> None:
    install("toy_kites", "streamd.sink.1", "streamd.sinks.2", "streamd.sinks", "streamdeck.sink")
    groups = [registry.group for registry in REGISTRIES]
    found = elsewhere(groups)
    assert list(found) == ["streamd.sink.1"]
    (offer,) = found["streamd.sink.1"]
    assert "is in no group that streamd reads (streamd.sources, " in offer.problem


def test_the_daemon_refuses_it_with_the_line_of_the_file(install: Install, tmp_path: Path) -> None:
    install("toy_kites", "streamd.sinks.7")
    file = tmp_path / "streamd.yaml"
    file.write_text("model: {path: none}\nstreams: [{id: a, kind: synthetic}]\nsinks:\n  - {kind: kite}\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    for command in (["check", "--no-model"], ["run"]):
        told = subprocess.run(
            [sys.executable, "-m", "streamd", *command, str(file)],
            capture_output=True, text=True, timeout=60, env=environment,
        )  # fmt: skip
        assert told.returncode == 2
        assert f"{file}:4: sinks[0].kind: sink kind kite comes from the package toy_kites 1.5" in (
            told.stdout + told.stderr
        )
        assert f"version 7 of the contract (streamd.sinks.7); this streamd {__version__} offers version 1" in (
            told.stdout + told.stderr
        )
        assert "Traceback" not in told.stderr
