"""What is asked of kinds of other packages, and how their errors are told."""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from streamd.errors import ConfigError, SinkError
from streamd.settings import KindSettings, plugins
from streamd.settings.plugins import Origin, culprit, described, misfit, opened, told
from streamd.settings.registry import Registry

ORIGIN = Origin("toy", "kite", "toy-kites 1.5")


class Contract(ABC):
    """What a toy must be."""

    size: int

    @abstractmethod
    def play(self, place: str, hours: int = 1, *, alone: bool = False) -> None: ...

    def stop(self) -> None:
        return

    @property
    def name(self) -> str:
        return ""


class Kite(Contract):
    size = 3

    def play(self, place: str, hours: int = 1, *, alone: bool = False) -> None: ...


class More(Kite):
    def play(self, place: str, *rest: Any, **options: Any) -> None: ...


class Old(Kite):
    def play(self, place: str) -> None: ...  # type: ignore[override]


class Sizeless(Contract):
    def play(self, place: str, hours: int = 1, *, alone: bool = False) -> None: ...


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (Kite(), ""),
        (More(), ""),
        (None, "is None; expected an object of a class derived from tests.settings.test_plugins.Contract"),
        (3, "is a int, which does not derive from tests.settings.test_plugins.Contract"),
        (Sizeless(), "has no size; see tests.settings.test_plugins.Contract"),
        (
            Old(),
            "has play(self, place), where play(self, place, hours, alone) is expected; it was made for another version",
        ),
    ],
)
def test_what_is_made_is_held_to_the_contract(made: object, problem: str) -> None:
    assert misfit(made, Contract) == problem


def test_a_property_that_fails_is_an_error_when_it_is_opened() -> None:
    class Raises(Kite):
        @property
        def name(self) -> str:
            raise ValueError("no licence")

    with pytest.raises(SinkError, match=r"toy kind kite of the package toy-kites 1.5 failed to open \(ValueError: no"):
        opened(ORIGIN, Contract, SinkError, Raises)
    assert isinstance(opened(None, Contract, SinkError, Raises), Raises), "ours are not looked at"


def test_errors_name_the_package_and_say_what_to_do() -> None:
    def fails() -> None:
        raise ValueError("no licence")

    with pytest.raises(ConfigError) as caught, told(ORIGIN, "fly", ConfigError):
        fails()
    text = str(caught.value)
    assert text.startswith(
        "toy kind kite of the package toy-kites 1.5 failed to fly (ValueError: no licence, in settings/"
    )
    assert text.endswith(plugins.REMEDY)
    with pytest.raises(SystemExit), told(None, "fly", ConfigError):
        sys.exit(3)
    with pytest.raises(ConfigError, match="SystemExit: 3"), told(ORIGIN, "fly", ConfigError):
        sys.exit(3)
    with pytest.raises(SinkError, match="its own words"), told(ORIGIN, "fly", ConfigError):
        raise SinkError("its own words")
    with pytest.raises(KeyboardInterrupt), told(ORIGIN, "fly", ConfigError):
        raise KeyboardInterrupt


def test_an_error_without_words_or_place_is_described() -> None:
    assert described(KeyError()) == "KeyError"


def test_an_error_is_described_in_one_line_of_bounded_length() -> None:
    assert described(ValueError("one\ntwo  three")) == "ValueError: one two three"
    assert len(described(ValueError("word " * 10**6))) < 600

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert described(Mute()) == "Mute"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry[Any]]:
    """Installs packages that offer toys; returns the registry."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_origins", {})
    monkeypatch.setattr(plugins, "_packages", {})

    def installed(*names: str, code: str) -> Registry[Any]:
        for name in names:
            (tmp_path / f"{name}.py").write_text(code)
            info = tmp_path / f"{name}-1.5.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (info / "entry_points.txt").write_text(f"[streamd.test_plays]\nkite = {name}:KiteSettings\n")
        registry: Registry[Toy] = Registry("toy", Toy, "streamd.settings", group="streamd.test_plays")

        @registry.register
        class BallSettings(Toy):
            kind: Literal["ball"] = "ball"

            def open(self, place: str, *, alone: bool = False) -> object:
                return object()

        return registry

    return installed


class Toy(KindSettings):
    """What every toy has."""

    def open(self, place: str, *, alone: bool = False) -> object:
        raise NotImplementedError


HEADER = """
from typing import Literal
from tests.settings.test_plugins import Toy

class KiteSettings(Toy):
    kind: Literal["kite"] = "kite"
"""
SOUND = HEADER + "    def open(self, place, *, alone=False): raise RuntimeError('no wind')\n"


@pytest.mark.parametrize(
    ("names", "code", "problem"),
    [
        (
            ["toy_exits"],
            "raise SystemExit('no licence')",
            "package toy_exits 1.5, which cannot be used (SystemExit: no",
        ),
        (["toy_closed"], HEADER, "(KiteSettings does not define open)"),
        (
            ["toy_old"],
            HEADER + "    def open(self, place): ...\n",
            "(KiteSettings has open(self, place), where open(self, place, alone) is expected; it was made for another",
        ),
        (
            ["toy_one", "toy_two"],
            SOUND,
            "comes from several packages (toy_one 1.5, toy_two 1.5); uninstall all but one",
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_told_where_its_kind_is_named(
    package: Callable[..., Registry[Any]], names: list[str], code: str, problem: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        package(*names, code=code).adapter().validate_python({"kind": "kite"})
    assert problem in caught.value.errors()[0]["msg"]


def test_the_package_of_a_kind_is_known_and_blamed_for_its_errors(package: Callable[..., Registry[Any]]) -> None:
    registry = package("toy_blamed", code=SOUND)
    made = registry.adapter().validate_python({"kind": "kite"})
    assert str(plugins.origin(made)) == "toy kind kite of the package toy_blamed 1.5"
    assert plugins.origin(registry.adapter().validate_python({"kind": "ball"})) is None
    assert plugins.maker(made) == "toy_blamed 1.5"
    with pytest.raises(RuntimeError) as caught:
        made.open("park")
    assert culprit(caught.value.__traceback__) == "toy_blamed 1.5"
    with pytest.raises(RuntimeError) as ours:
        raise RuntimeError
    assert culprit(ours.value.__traceback__) is None


def test_a_kind_that_has_the_name_of_ours_is_known_to_be_unused(package: Callable[..., Registry[Any]]) -> None:
    registry = package("toy_same", code=SOUND)
    assert registry.unused("kite") == []

    @registry.register
    class OwnSettings(Toy):
        kind: Literal["kite"] = "kite"

    assert registry.unused("kite") == ["toy_same 1.5"]
    assert isinstance(registry.adapter().validate_python({"kind": "kite"}), OwnSettings)
    assert "toy_same" not in sys.modules


def test_a_module_is_not_needed_to_say_whose_it_is() -> None:
    assert plugins.maker(ModuleType("nobody")) is None


def test_a_package_that_was_installed_since_is_found(package: Callable[..., Registry[Any]]) -> None:
    registry = package(code="")
    with pytest.raises(ValidationError, match="expected one of ball"):
        registry.adapter().validate_python({"kind": "kite"})
    package("toy_later", code=SOUND)
    assert registry.adapter().validate_python({"kind": "kite"}).kind == "kite"


def test_what_is_being_imported_is_known_to_who_waits_for_it(package: Callable[..., Registry[Any]]) -> None:
    code = "from streamd.settings import plugins\nimported = str(plugins.imported_now())\n"
    registry = package("toy_slow", code=code + SOUND)
    registry.adapter().validate_python({"kind": "kite"})
    assert sys.modules["toy_slow"].imported == "toy kind kite of the package toy_slow 1.5"
    assert plugins.imported_now() is None


def test_a_package_that_was_uninstalled_since_is_named_by_its_module(
    package: Callable[..., Registry[Any]], tmp_path: Path
) -> None:
    registry = package("toy_gone", code=SOUND)
    assert list(registry.plugins()) == ["kite"]
    shutil.rmtree(tmp_path / "toy_gone-1.5.dist-info")
    made = registry.adapter().validate_python({"kind": "kite"})
    assert str(plugins.origin(made)) == "toy kind kite of the package toy_gone"
