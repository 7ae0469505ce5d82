"""The kinds of one package: those built into streamd, and those added by other installed packages.

A kind is a settings class, in the same file as the object that it opens:

    @SINKS.register
    class JsonlSettings(SinkSettings):
        kind: Literal["jsonl"] = "jsonl"
        path: ConfigPath = Field("-", description="File to append to.")

        def open(self) -> JsonlSink: ...

Nothing else has to name it. Built-in kinds are found by importing the modules of their package. A kind of another
distribution is an entry point whose name is the kind and whose object is the class. Its group is that of the package,
followed by the version of the contract that it was written for (`offers`):

    [project.entry-points."streamd.sinks.1"]
    csv = "streamd_csv:CsvSettings"

An entry point is imported only if a configuration names its kind, so a broken package does not affect other
configurations. Built-in kinds cannot be replaced. `plugins` says what is asked of kinds of other packages.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from streamd.settings import KindSettings
from streamd.settings.offers import Offer, offers
from streamd.settings.plugins import Origin, described, importing, remember, wrong_signature

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

SettingsT = TypeVar("SettingsT", bound=KindSettings)


def kind_of(settings: type[KindSettings]) -> str:
    """The kind of a settings class: the only value of its field `kind`.

    Raises:
        TypeError: the class does not declare one.
    """
    field = settings.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None else ()
    if field is None or len(values) != 1 or field.default != values[0]:
        raise TypeError(f'{settings.__name__}: expected a field `kind: Literal["NAME"] = "NAME"`')
    return str(values[0])


class Registry(Generic[SettingsT]):
    """All kinds of one package, by name. Any thread.

    Args:
        noun: the word for a kind in errors: sink, source, head, engine.
        base: base class of the settings of every kind.
        package: the package whose modules register the built-in kinds when they are imported.
        default: the kind of settings without a `kind`; None if it is required.
        first: the kind to list first. Default: the default kind.
        group: entry point group, without the version. Default: the package's name.
        contract: the version of what streamd promises to kinds of other packages, and asks of them. It rises with a
            change that a kind written for the version before does not fit: docs/extending.md says which those are.
    """

    def __init__(
        self,
        noun: str,
        base: type[SettingsT],
        package: str,
        *,
        default: str | None = None,
        first: str | None = None,
        group: str | None = None,
        contract: int = 1,
    ) -> None:
        self.noun, self.base, self.default = noun, base, default
        self._first = first or default
        self._package = package
        self.group = group or package
        self.contract = contract
        self._kinds: dict[str, type[SettingsT]] = {}
        self._offers: Mapping[str, Sequence[Offer]] | None = None
        self._loaded: dict[str, type[SettingsT]] = {}
        self._scanned = False
        self._lock = threading.RLock()

    def register(self, settings: type[SettingsT]) -> type[SettingsT]:
        """Class decorator that registers a kind.

        Raises:
            TypeError: the class does not derive from the base, or declares no kind.
            ValueError: another class already has that kind.
        """
        if not issubclass(settings, self.base):
            raise TypeError(f"{settings.__name__}: settings of a {self.noun} must derive from {self.base.__name__}")
        kind = kind_of(settings)
        known = self._kinds.setdefault(kind, settings)
        if (known.__module__, known.__qualname__) != (settings.__module__, settings.__qualname__):
            raise ValueError(f"{self.noun} kind {kind}: {known.__module__} and {settings.__module__} both register it")
        return settings

    def builtin(self) -> dict[str, type[SettingsT]]:
        """The built-in kinds: `first`, then by name."""
        with self._lock:
            if not self._scanned:
                package = importlib.import_module(self._package)
                for module in pkgutil.iter_modules(package.__path__):
                    if not module.name.startswith("_"):
                        importlib.import_module(f"{self._package}.{module.name}")
                self._scanned = True
        return {name: self._kinds[name] for name in sorted(self._kinds, key=lambda kind: (kind != self._first, kind))}

    def plugins(self) -> list[str]:
        """Kinds of other distributions, without importing them."""
        return list(self.offers())

    def offers(self) -> Mapping[str, Sequence[Offer]]:
        """Every offer of other distributions, by kind: more than one if several offer a kind of that name."""
        if self._offers is None:
            self._offers = offers(self.group, self.contract)
        return self._offers

    def unused(self, kind: str) -> list[str]:
        """Packages whose kind is not used because streamd has one of that name."""
        return [offer.package for offer in self.offers().get(kind, ())] if kind in self.builtin() else []

    def names(self) -> list[str]:
        """Every kind that a configuration may name, without importing other distributions."""
        builtin = list(self.builtin())
        return [*builtin, *(name for name in self.plugins() if name not in builtin)]

    def find(self, kind: str) -> type[SettingsT]:
        """The settings of a kind.

        Raises:
            PydanticCustomError: the kind does not exist, or its package cannot be used; says what to do.
        """
        if (found := self.builtin().get(kind) or self._loaded.get(kind)) is not None:
            return found
        offered = self.offers().get(kind, ())
        if all(offer.problem for offer in offered):
            self._offers = None  # the package may have been installed since: a reload need not be told of it
            offered = self.offers().get(kind, ())
        if not offered:
            raise PydanticCustomError(
                "unknown_kind",
                "expected one of {names}",
                {"names": ", ".join(self.names())},
            )
        if len(offered) > 1:
            raise PydanticCustomError(
                "broken_plugin",
                "{noun} kind {kind} comes from several packages ({packages}); uninstall all but one",
                {"noun": self.noun, "kind": kind, "packages": ", ".join(offer.package for offer in offered)},
            )
        self._loaded[kind] = self._load(offered[0])
        return self._loaded[kind]

    def _load(self, offer: Offer) -> type[SettingsT]:
        point = offer.point
        if offer.problem:
            raise PydanticCustomError(
                "broken_plugin",
                "{noun} kind {kind} comes from the package {package}, which {problem}",
                {"noun": self.noun, "kind": point.name, "package": offer.package, "problem": offer.problem},
            )
        origin = Origin(self.noun, point.name, offer.package)
        try:
            with importing(origin):
                settings = point.load()
            problem = self._unfit(settings, point.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - another package may raise anything at import, SystemExit too
            problem = described(error)
        if problem:
            raise PydanticCustomError(
                "broken_plugin",
                "{noun} kind {kind} comes from the package {package}, which cannot be used ({problem}); "
                "repair, upgrade or uninstall it",
                {"noun": self.noun, "kind": point.name, "package": origin.package, "problem": problem},
            )
        remember(settings, origin)
        found: type[SettingsT] = settings
        return found

    def _unfit(self, settings: Any, name: str) -> str:
        if not (isinstance(settings, type) and issubclass(settings, self.base)):
            return f"its entry point is not a class derived from {self.base.__module__}.{self.base.__name__}"
        kind = kind_of(settings)
        if kind != name:
            return f"its entry point is named {name}, but its class is of kind {kind}"
        opens = getattr(self.base, "open", None)
        if opens is not None and getattr(settings, "open", None) is opens:
            return f"{settings.__name__} does not define open"
        problem = wrong_signature(settings, self.base)
        return f"{settings.__name__} {problem}" if problem else ""

    def validate(self, value: Any) -> SettingsT:
        """Validates `value`, a mapping, as settings of the kind that it names. Settings objects pass unchanged.

        Raises:
            ValidationError, PydanticCustomError: names each invalid field.
        """
        if isinstance(value, self.base):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("mapping_type", "expected the fields of a {noun}", {"noun": self.noun})
        kind = value.get("kind", self.default)
        if kind is None:
            problem = "is missing" if "kind" not in value else "is empty (in YAML, null needs quotes to be a name)"
            names = ", ".join(self.names())
            raise PydanticCustomError(
                "unknown_kind", "{problem}; expected one of {names}", {"problem": problem, "names": names}
            )
        return self.find(str(kind)).model_validate(value)

    def adapter(self) -> TypeAdapter[SettingsT]:
        """Validates a mapping outside a complete configuration."""
        return TypeAdapter(self.one_of())

    def one_of(self) -> Any:
        """The type of a field that contains settings of one kind."""
        return Annotated[self.base, OneOf(self)]

    def __iter__(self) -> Iterator[type[SettingsT]]:
        return iter(self.builtin().values())


class OneOf:
    """Pydantic's view of a registry: validates by the named kind, and describes the built-in kinds.

    Args:
        registry: the registry.
    """

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # A field's value is serialized by its own class rather than the base, so there is no schema of the base here.
        return core_schema.no_info_plain_validator_function(self.registry.validate, metadata={"one_of": self})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices: dict[Any, CoreSchema] = {
            name: kind.__pydantic_core_schema__ for name, kind in described_kinds(self.registry).items()
        }
        return handler(core_schema.tagged_union_schema(choices, "kind"))


_with_plugins = False


def described_kinds(registry: Registry[Any]) -> dict[str, type[KindSettings]]:
    """The kinds listed in a JSON Schema: built-in ones, and inside `with_plugins` those of other distributions."""
    kinds: dict[str, type[KindSettings]] = dict(registry.builtin())
    if _with_plugins:
        for name in registry.plugins():
            kinds.setdefault(name, registry.find(name))
    return kinds


class with_plugins:
    """Inside the block, JSON Schemas also list the kinds of other distributions, which are imported."""

    def __enter__(self) -> None:
        global _with_plugins
        _with_plugins = True

    def __exit__(self, *_: object) -> None:
        global _with_plugins
        _with_plugins = False
