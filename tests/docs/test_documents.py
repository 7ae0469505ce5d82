"""What the documents say is so: links lead somewhere, commands are accepted, examples load, names exist."""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import build_dashboard
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from streamd import errors
from streamd.cli import COMMANDS, parser
from streamd.config import Config
from streamd.config.expected import sections_of
from streamd.config.loader import load
from streamd.errors import SOURCE_REASONS, StreamdError
from streamd.settings import Settings
from streamd.sinks import peers
from tests.conftest import ROOT

DOCS = ROOT / "docs"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("systemd/*.md"), ROOT / "streamd" / "README.md"]
)
SHELLS = ("sh", "bash", "console", "")
MAX_CODE = 98
"""Characters of a line of code that GitHub shows at its full width."""
named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))


def tokens(document: Path) -> list[Token]:
    """All tokens, those inside lines and tables included."""
    parsed = MarkdownIt("commonmark").enable("table").parse(document.read_text())
    return [each for token in parsed for each in (token, *(token.children or ()))]


def fences(document: Path, *languages: str) -> Iterator[str]:
    for token in tokens(document):
        if token.type == "fence" and token.info.split(" ")[0] in languages:
            yield token.content


def inline_code(document: Path) -> Iterator[str]:
    return (token.content for token in tokens(document) if token.type == "code_inline")


def headings(document: Path) -> list[str]:
    found = tokens(document)
    return [after.content for token, after in itertools.pairwise(found) if token.type == "heading_open"]


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    seen: dict[str, int] = {}
    out = set()
    for text in headings(document):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        out.add(f"{slug}-{count}" if count else slug)
    return out


# ---------------------------------------------------------------------------------------------------------------- links


@named
def test_links_lead_somewhere(document: Path) -> None:
    targets = [
        str(t.attrs.get("href") or t.attrs.get("src")) for t in tokens(document) if t.type in ("link_open", "image")
    ]
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{target}: there is no such file"
        assert found.is_relative_to(ROOT), f"{target}: leads out of the project"
        if anchor:
            assert anchor in anchors(found), f"{target}: {found.name} has no such heading"


def test_every_document_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    missing = [d.name for d in DOCS.glob("*.md") if d.name != "README.md" and f"]({d.name})" not in index]
    assert missing == []


def test_pictures_are_small_and_told_in_words() -> None:
    for picture in (DOCS / "images").glob("*"):
        assert picture.stat().st_size < 150_000, picture.name
    for document in DOCUMENTS:
        for token in tokens(document):
            assert token.type != "image" or len(token.content) > 10, f"{document}: a picture needs an alternative text"


# ------------------------------------------------------------------------------------------------------------- commands


def command_lines(text: str) -> Iterator[list[str]]:
    """The simple commands in a shell example, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;&|()]+", word):
                yield words
                words = []
            else:
                words.append(word)


def without_redirections(words: list[str]) -> list[str]:
    return words[: next((i for i, word in enumerate(words) if re.fullmatch(r"[<>]+", word)), len(words))]


def commands(document: Path, name: str) -> Iterator[list[str]]:
    """Each call of `name` (streamd, or tools/x.py) in the shell examples, as words."""
    for text in fences(document, *SHELLS):
        for words in command_lines(text):
            while words and (
                words[0] in ("sudo", "time", "python3", "python") or "=" in words[0] or "/python" in words[0]
            ):
                words = words[1:]
            if words and re.search(rf"(^|/){name}$", words[0]):
                yield without_redirections(words)


def subparsers() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_the_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| `streamd ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@named
def test_commands_are_accepted(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = []
    for _, *arguments in commands(document, "streamd"):
        try:
            parser().parse_args(arguments)
        except SystemExit as stop:
            refused += [(arguments, capsys.readouterr().err)] if stop.code else []
    assert refused == []


@named
def test_commands_named_in_passing_exist(document: Path) -> None:
    known = subparsers()
    for text in inline_code(document):
        found = re.match(r"streamd ([a-z]+)\b(.*)", text, re.DOTALL)
        if found is None:
            continue
        assert found[1] in known, text
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", found[2]):
            assert option in options(known[found[1]]), f"{text}: no option {option}"


def options(command: argparse.ArgumentParser) -> set[str]:
    """Those of a command and of its actions."""
    found = set(command._option_string_actions)
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {name for nested in action.choices.values() for name in options(nested)}
    return found


@named
def test_tools_exist_and_know_their_options(document: Path) -> None:
    named_tools = set(re.findall(r"tools/[a-z_]+\.py", document.read_text()))
    assert [t for t in named_tools if not (ROOT / t).exists()] == []
    for tool, *arguments in commands(document, r"tools/[a-z_]+\.py"):
        source = (ROOT / tool[tool.index("tools/") :]).read_text()
        for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
            assert f'"{option}"' in source, f"{tool} has no option {option}"


# ------------------------------------------------------------------------------------------------------------- examples


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A part of a configuration with the parts that every one needs."""
    return {"model": {"path": "none"}, "streams": [{"id": "some", "kind": "synthetic"}], **values}


@named
def test_configurations_load(document: Path, tmp_path: Path) -> None:
    for text in fences(document, "yaml"):
        # What stands for a secret of somebody else's machine.
        text = re.sub(r"\$\{file:[^}]*\}", "${SECRET}", text)
        values = yaml.safe_load(text)
        if not set(values) <= set(Config.model_fields):
            assert not set(values) & {"streams", "model"}, f"{document.name}: {set(values)} is half a configuration"
            continue
        path = tmp_path / "streamd.yaml"
        path.write_text(yaml.safe_dump(complete(values)))
        names = re.findall(r"\$\{(\w+)", text)
        load(path, dict.fromkeys(names, "some-value-or-key"))


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "streamd" / "assets" / "road6.md"], ids=lambda d: d.name)
def test_code_is_no_wider_than_the_page(document: Path) -> None:
    """Of a block with longer lines, GitHub and the documentation's page hide the ends."""
    blocks = [token.content for token in tokens(document) if token.type in ("fence", "code_block")]
    assert [line for block in blocks for line in block.splitlines() if len(line) > MAX_CODE] == []


@named
def test_code_can_be_read(document: Path) -> None:
    for text in fences(document, "python"):
        compile(text, str(document), "exec")
    for text in fences(document, "json"):
        json.loads(text)


# ---------------------------------------------------------------------------------------------------------------- names


def mentioned_metrics(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w/.-])streamd_[a-z_]*[a-z](?![\w(]|\.py)", text))


@named
def test_metrics_that_are_named_exist(document: Path) -> None:
    known = set(build_dashboard.known())
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known}
    assert sorted(mentioned_metrics(document.read_text()) - known - families) == []


def drop_reasons() -> set[str]:
    """Every word that the code counts a dropped frame or message under."""
    found: set[str] = set()
    for file in (ROOT / "streamd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("drop", "_drop", "on_drop", "_on_drop", "refuse"):
                found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def sections(title: str) -> set[str]:
    """The code words that are headings below a heading of the troubleshooting guide."""
    text = (DOCS / "troubleshooting.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE))


def fields_by_section() -> dict[str, set[str]]:
    """Of each section, by the field that holds it, the fields of all its kinds, with those of sections of that name."""
    found: dict[str, set[str]] = {}
    todo: list[type[Settings]] = [Config]
    for section in todo:
        for name, field in section.model_fields.items():
            for _, below in sections_of(field):
                if below not in todo:
                    todo.append(below)
                found.setdefault(name, set()).update(below.model_fields)
    return found


FIELDS = fields_by_section()
FILES = {"events.db", "model.onnx", "streams.json"}
OF_MESSAGES = {"look.unlooked"}


@pytest.mark.parametrize(
    "document",
    [each for each in DOCUMENTS if each.name not in ("CHANGELOG.md", "lab-notebook.md")],
    ids=lambda d: str(d.relative_to(ROOT)),
)
def test_fields_of_the_configuration_exist(document: Path) -> None:
    named_as = re.compile(r"(?<![\w./-])([a-z_]+)\.([a-z_]+)(?=$|[ :.,={\[])")
    wrong = {
        found[0]
        for code in inline_code(document)
        for found in named_as.finditer(code)
        if found[1] in FIELDS and found[2] not in FIELDS[found[1]]
    }
    assert wrong - FILES - OF_MESSAGES == set()


def test_every_reason_of_a_status_has_its_section() -> None:
    assert sections("A stream is not well, by reason") == SOURCE_REASONS


def test_every_reason_of_a_drop_has_its_section_or_row() -> None:
    text = (DOCS / "troubleshooting.md").read_text().split("\n## Messages are lost")[1].split("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows == {"subscriber_slow", "ring_full", "error", "relay_full", "shutdown"}
    found = drop_reasons()
    assert {"ring_full", "too_old", "quarantine"} <= found
    assert sections("Frames are dropped, by reason") == found - {"error"}


def test_every_reason_to_disconnect_a_subscriber_has_its_row() -> None:
    text = (DOCS / "troubleshooting.md").read_text().split("\n## A subscriber is disconnected")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(get_args(peers.Reason))


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in (DOCS / "configuration.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if len(row.rstrip("| ").rsplit(" | ", 1)[-1]) < 4] == []


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, StreamdError)]
    assert [k.exit_code for k in kinds if f"| {k.exit_code} | " not in text] == []
