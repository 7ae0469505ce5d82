"""Kinds register themselves; those of other packages are imported only when they are named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from streamd.settings import (
    ConfigPath,
    ExternalMark,
    ExternalSecret,
    KindSettings,
    PathMark,
    Settings,
    marked,
    with_paths,
)
from streamd.settings.registry import Registry, with_plugins


class Toy(KindSettings):
    """What every toy has."""

    name: str | None = None


class Box(Settings):
    """Where a toy is kept."""

    path: ConfigPath = "box.txt"


def toys(group: str = "streamd.no_such_group") -> Registry[Toy]:
    registry: Registry[Toy] = Registry("toy", Toy, "streamd.settings", default="ball", group=group)

    @registry.register
    class BallSettings(Toy):
        kind: Literal["ball"] = "ball"
        size: int = Field(3, ge=1)

    @registry.register
    class ActorSettings(Toy):
        kind: Literal["actor"] = "actor"
        box: Box | None = None
        names: tuple[str, ...] | ConfigPath | None = None
        log: ConfigPath | None = None
        key: ExternalSecret | None = None

    return registry


def config(registry: Registry[Toy]) -> Any:
    class Config(Settings):
        toys: tuple[registry.one_of(), ...] = ()  # type: ignore[valid-type]
        first: registry.one_of() | None = None  # type: ignore[valid-type]

    return Config


def test_the_named_kind_is_validated_and_the_default_where_none_is_named() -> None:
    made = config(toys()).model_validate({"toys": [{"size": 4}, {"kind": "actor", "box": {"path": "b"}}], "first": {}})
    assert [t.kind for t in made.toys] == ["ball", "actor"]
    assert made.toys[0].size == 4
    assert made.first.kind == "ball"
    assert made.model_dump(mode="json")["toys"][1]["box"] == {"path": "b"}
    again = type(made).model_validate(made.model_dump())
    assert again == made


@pytest.mark.parametrize(
    ("value", "where", "words"),
    [
        ({"size": 0}, ("toys", 0, "size"), "greater than or equal to 1"),
        ({"colour": "red"}, ("toys", 0, "colour"), "Extra inputs"),
        ({"kind": "kite"}, ("toys", 0), "expected one of ball, actor"),
        ({"kind": None}, ("toys", 0), "is empty (in YAML, null needs quotes to be a name); expected one of ball"),
        ([1], ("toys", 0), "expected the fields of a toy"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(value: Any, where: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(toys()).model_validate({"toys": [value]})
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert words in error["msg"]


def test_a_kind_cannot_be_registered_twice_or_without_a_name() -> None:
    registry = toys()

    class Other(Toy):
        kind: Literal["ball"] = "ball"

    with pytest.raises(ValueError, match=r"kind ball: .* both register it"):
        registry.register(Other)

    class Nameless(Toy):
        pass

    with pytest.raises(TypeError, match=r"Nameless: expected a field `kind: Literal\[\"NAME\"\] = \"NAME\"`"):
        registry.register(Nameless)

    class Foreign(KindSettings):
        kind: Literal["foreign"] = "foreign"

    with pytest.raises(TypeError, match="Foreign: settings of a toy must derive from Toy"):
        registry.register(Foreign)  # type: ignore[arg-type]


def test_the_schema_lists_every_kind_under_its_own_name() -> None:
    schema = config(toys()).model_json_schema()
    assert {"BallSettings", "ActorSettings", "Box"} <= set(schema["$defs"])
    assert [option["$ref"] for option in schema["properties"]["toys"]["items"]["oneOf"]] == [
        "#/$defs/BallSettings",
        "#/$defs/ActorSettings",
    ]


def test_paths_and_secrets_are_found_by_their_marks() -> None:
    made = config(toys()).model_validate(
        {"toys": [{}, {"kind": "actor", "box": {}, "names": "n.txt", "log": "-", "key": "secret"}]}
    )
    assert [(path, value) for path, value, _ in marked(made, PathMark)] == [
        (("toys", 1, "box", "path"), "box.txt"),
        (("toys", 1, "names"), "n.txt"),
        (("toys", 1, "log"), "-"),
    ]
    assert [path for path, _, _ in marked(made, ExternalMark)] == [("toys", 1, "key")]
    moved = with_paths(made, lambda text: f"/etc/{text}")
    assert (moved.toys[1].box.path, moved.toys[1].names, moved.toys[1].log) == ("/etc/box.txt", "/etc/n.txt", "/etc/-")
    assert moved.toys[0] is made.toys[0]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package with one module and one entry point, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(name: str, code: str, entry: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[streamd.test_toys]\n{entry}\n")

    return installed


PLUGIN = """
from typing import Literal
from tests.settings.test_registry import Toy

class KiteSettings(Toy):
    kind: Literal["kite"] = "kite"
    length_m: float = 2.0
"""


def test_another_package_is_imported_when_its_kind_is_named(install: Callable[..., None]) -> None:
    install("toy_kites", PLUGIN, "kite = toy_kites:KiteSettings")
    registry = toys("streamd.test_toys")
    assert registry.names() == ["ball", "actor", "kite"]
    config(registry).model_validate({"toys": [{}]})
    assert "KiteSettings" not in str(config(registry).model_json_schema())
    assert "toy_kites" not in sys.modules
    made = config(registry).model_validate({"toys": [{"kind": "kite", "length_m": 3}]})
    assert made.toys[0].length_m == 3
    with with_plugins():
        assert "KiteSettings" in config(registry).model_json_schema()["$defs"]


@pytest.mark.parametrize(
    ("name", "code", "entry", "problem"),
    [
        ("toy_raises", "raise RuntimeError('no licence')", "kite = toy_raises:K", "RuntimeError: no licence"),
        ("toy_needs", "import no_such_module", "kite = toy_needs:K", "ModuleNotFoundError: No module named"),
        ("toy_empty", "", "kite = toy_empty:KiteSettings", "AttributeError"),
        ("toy_number", "K = 3", "kite = toy_number:K", "is not a class derived from tests.settings.test_registry.Toy"),
        ("toy_named", PLUGIN, "dragon = toy_named:KiteSettings", "named dragon, but its class is of kind kite"),
    ],
)
def test_a_broken_package_is_one_clear_error_where_it_is_named_and_none_elsewhere(
    install: Callable[..., None], name: str, code: str, entry: str, problem: str
) -> None:
    install(name, code, entry)
    registry = toys("streamd.test_toys")
    config(registry).model_validate({"toys": [{"kind": "ball"}]})
    with pytest.raises(ValidationError) as caught:
        config(registry).model_validate({"toys": [{"kind": entry.split()[0]}]})
    (error,) = caught.value.errors()
    assert error["loc"] == ("toys", 0)
    assert f"comes from the package {name} 1.5, which cannot be used" in error["msg"]
    assert problem in error["msg"]
    assert "repair, upgrade or uninstall it" in error["msg"]


def test_another_package_cannot_replace_a_kind_of_ours(install: Callable[..., None]) -> None:
    install("toy_balls", "raise RuntimeError", "ball = toy_balls:Ball")
    registry = toys("streamd.test_toys")
    assert registry.names() == ["ball", "actor"]
    assert type(config(registry).model_validate({"first": {"kind": "ball"}}).first).__name__ == "BallSettings"


def test_the_groups_of_the_rooms_are_those_that_plugins_name() -> None:
    from streamd.analysis.tracking import TRACKERS
    from streamd.engine import ENGINES
    from streamd.sinks import SINKS
    from streamd.sources import SOURCES

    groups = [registry.group for registry in (SOURCES, ENGINES, SINKS, TRACKERS)]
    assert groups == ["streamd.sources", "streamd.engines", "streamd.sinks", "streamd.trackers"]
