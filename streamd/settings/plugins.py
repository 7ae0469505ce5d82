"""Kinds of other packages: whose they are, whether what they make fits, and how their errors are told.

streamd's own kinds pass through all of this at the cost of one look-up: their errors are not ours to translate.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, TracebackType
from typing import TypeVar

from streamd.errors import StreamdError

T = TypeVar("T")

REMEDY = "report it to the package's author, install another version of it, or do without its kind"


@dataclass(frozen=True)
class Origin:
    """Where a kind comes from."""

    noun: str
    """The word for a kind: sink, stream, head, engine, tracker."""
    kind: str
    package: str
    """Name and version of the distribution."""

    def __str__(self) -> str:
        return f"{self.noun} kind {self.kind} of the package {self.package}"

    def failed(self, doing: str, error: BaseException) -> str:
        """The message for an error that the package should not have raised."""
        return f"{self} failed to {doing} ({described(error)}); {REMEDY}"

    def unfit(self, problem: str) -> str:
        """The message for something that the package should not have returned."""
        return f"{self} cannot be used: {problem}; {REMEDY}"


_origins: dict[type, Origin] = {}
_packages: dict[str, str] = {}
"""Package by the name of its outermost module."""


_importing: list[Origin] = []


@contextmanager
def importing(of: Origin) -> Iterator[None]:
    """Inside the block, a package is imported."""
    _importing.append(of)
    try:
        yield
    finally:
        _importing.remove(of)


def imported_now() -> Origin | None:
    """What is imported at the moment, for whoever has waited too long for it. Any thread."""
    return _importing[-1] if _importing else None


def remember(settings: type, origin: Origin) -> None:
    """Notes where a class of settings comes from."""
    _origins[settings] = origin
    _packages[settings.__module__.partition(".")[0]] = origin.package


def origin(settings: object) -> Origin | None:
    """Where the kind of these settings comes from; None for one of streamd's own."""
    return _origins.get(type(settings))


def maker(made: object) -> str | None:
    """The package of another author that defines the class of an object; None where it is streamd's own."""
    return _packages.get(type(made).__module__.partition(".")[0])


MOST_WORDS = 500
"""Characters that are told of an error: it may have an array in it, and statuses are repeated every few seconds."""


def described(error: BaseException) -> str:
    """An error with the line that raised it, in one line."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - what raises it may be at fault in this, too
        words = ""
    words = " ".join(words[: 2 * MOST_WORDS].split())
    text = f"{type(error).__name__}: {words[:MOST_WORDS]}" if words else type(error).__name__
    stack = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<")]
    if not stack:
        return text
    return f"{text}, in {'/'.join(Path(stack[-1].filename).parts[-2:])}, line {stack[-1].lineno}"


def culprit(trace: TracebackType | None) -> str | None:
    """The package of another author whose code is on the stack; the innermost one. None where there is none."""
    found = None
    while trace is not None and _packages:
        module = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found = _packages.get(module, found)
        trace = trace.tb_next
    return found


@contextmanager
def told(of: Origin | None, doing: str, error: Callable[[str], StreamdError]) -> Iterator[None]:
    """Inside the block, what code of another package raises unexpectedly becomes one `error` that names the package.

    Args:
        of: whose code runs; None leaves every error as it is.
        doing: completes "failed to".
        error: makes the error of a message.
    """
    try:
        yield
    except (StreamdError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as caught:
        if of is None:
            raise
        raise error(of.failed(doing, caught)) from caught


def opened(of: Origin | None, contract: type, error: Callable[[str], StreamdError], make: Callable[[], T]) -> T:
    """What `make` returns. If it is of another package: checked against the contract, and its errors are told.

    Args:
        of: whose `open` is called; None for one of streamd's own kinds.
        contract: the class that the result must derive from, or whose members it must have if that is a protocol.
        error: makes the error of a message.
        make: calls `open`.
    """
    if of is None:
        return make()
    with told(of, "open", error):
        made = make()
        problem = misfit(made, contract)
    if problem:
        raise error(of.unfit(f"what its open returns {problem}"))
    return made


def misfit(made: object, contract: type) -> str:
    """Why an object cannot be used where `contract` is expected; empty if it can."""
    name = f"{contract.__module__}.{contract.__qualname__}"
    if made is None:
        return f"is None; expected an object of a class derived from {name}"
    protocol = bool(getattr(contract, "_is_protocol", False))
    if not protocol and not isinstance(made, contract):
        return f"is a {type(made).__qualname__}, which does not derive from {name}"
    for base in reversed(contract.__mro__):
        for member in [*vars(base).get("__annotations__", ()), *vars(base)]:
            if not member.startswith("_") and not hasattr(made, member):
                return f"has no {member}; see {name}"
    return wrong_signature(type(made), contract)


def wrong_signature(made: type, contract: type) -> str:
    """Which method of a class does not take what streamd gives it; empty if all do."""
    for base in contract.__mro__:
        for name, asked in vars(base).items():
            if not isinstance(asked, FunctionType):
                continue
            if name.startswith("_") and not getattr(asked, "__isabstractmethod__", False):
                continue
            own = inspect.getattr_static(made, name, None)
            if isinstance(own, FunctionType) and own is not asked and not _takes(own, asked):
                given, wanted = inspect.signature(own), inspect.signature(asked)
                names, expected = ", ".join(given.parameters), ", ".join(wanted.parameters)
                return f"has {name}({names}), where {name}({expected}) is expected; it was made for another version"
    return ""


def _takes(own: FunctionType, asked: FunctionType) -> bool:
    """Whether calls that `asked` allows are possible with `own`, too."""
    parameters = inspect.signature(asked).parameters.values()
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(own).bind(*plain, **named)
    except TypeError:
        return False
    return True
