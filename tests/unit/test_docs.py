"""The documentation against the code: settings and their defaults, links, and every command that it shows."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from solon.cli import app
from solon.constitution import Constitution, load_constitution
from solon.errors import ProblemsError
from solon.plan import BY_NAME
from solon.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<(?:img|source)[^>]+(?:src|srcset)=\"([^\"]+)\"")
_INLINE = re.compile(r"`((?:solon|make) [^`]+)`")
_SHELL = {"", "sh", "bash", "console", "shell"}
_USAGE: Any = typer.BadParameter.__base__  # what the parser raises for a wrong call


def _ids(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `Sampling` or `tuple[Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_of(a))), None)


def _default(value: Any) -> str:
    """A default as the page writes it: YAML on one line."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):
        value = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return (
        f"`{yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]}`"
    )


def _settings() -> dict[str, dict[str, str]]:
    """{heading: {setting: default}} of the tree: sections by their key, shared groups by their class."""
    found: dict[str, dict[str, str]] = {"The run": {}}
    groups: list[tuple[str, type[BaseModel]]] = []
    for name, field in Recipe.model_fields.items():
        section = _model_of(field.annotation)
        if section and field.default is not None:
            groups.append((name, section))
        else:
            found["The run"][name] = _default(field.default)
    for heading, group in groups:
        found[heading] = {name: _default(field.default) for name, field in group.model_fields.items()}
        inner = [m for field in group.model_fields.values() if (m := _model_of(field.annotation))]
        groups.extend((m.__name__, m) for m in inner if all(m is not known for _, known in groups))
    return found


def _tables(text: str) -> dict[str, dict[str, str]]:
    """{heading: {setting: default}} of the page's three-column tables."""
    found: dict[str, dict[str, str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip()
        elif row := re.fullmatch(r"\| `(\w+)` \| (.+?) \| (.+) \|", line):
            found.setdefault(heading, {})[row[1]] = row[2]
    return found


def test_every_setting_is_documented_with_its_default() -> None:
    assert _tables((ROOT / "docs/recipes.md").read_text(encoding="utf-8")) == _settings()


def test_every_key_of_a_constitution_is_documented() -> None:
    page = (ROOT / "docs/constitution.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w.\[\]]+)` \|", page, re.MULTILINE)) >= set(_keys(Constitution))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _model_of(field.annotation)
        if inner:
            many = "" if field.annotation is inner else "[]"
            yield from _keys(inner, f"{prefix}{name}{many}.")


def _links(page: Path) -> Iterator[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for found in _LINK.finditer(text):
        target = found[1] or found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{page.name}: {link}"


def _shell_lines(page: Path) -> Iterator[str]:
    """Whole command lines of the page's shell blocks."""
    for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language in _SHELL:
            for line in block.splitlines():
                command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if re.match(r"(solon|make)\b", command):
                    yield command


def _inline(page: Path) -> list[str]:
    return _INLINE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def _command(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and what is left of them."""
    command: Any = get_command(app)
    left = list(arguments)
    while left and (known := getattr(command, "commands", None)):
        assert left[0] in known or left[0].startswith("-"), f"there is no command {left[0]}"
        if left[0].startswith("-"):
            break
        command = known[left.pop(0)]
    return command, left


def _values(arguments: list[str], option: str) -> list[str]:
    return [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word == option]


def _has_setting(path: str) -> bool:
    model: type[BaseModel] | None = Recipe
    for part in path.split("."):
        if model is None or part not in model.model_fields:
            return False
        model = _model_of(model.model_fields[part].annotation)
    return True


def _check_solon(arguments: list[str], whole: bool) -> None:
    command, left = _command(arguments)
    if whole:
        # Parses as a call would, and raises for an unknown option or a missing argument; runs nothing.
        command.make_context("solon", list(left))
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--debug", "--help"}
    assert {word for word in left if word.startswith("--")} <= options
    assert all(_has_setting(value.partition("=")[0]) for value in _values(left, "--set"))
    assert all(stage in BY_NAME for stage in _values(left, "--until"))


def _check_make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(arguments) <= targets


def _check(line: str, whole: bool) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        _check_make(arguments)
    else:
        _check_solon(arguments, whole)


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_commands_exist(page: Path) -> None:
    for line in _shell_lines(page):
        _check(line, whole=True)
    for line in _inline(page):
        _check(line, whole=False)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("solon fly", AssertionError),
        ("solon run demo --sett a=1", _USAGE),
        ("solon run", _USAGE),
        ("solon run demo --set revise.round=3", AssertionError),
        ("solon run demo --until lunch", AssertionError),
        ("make lunch", AssertionError),
    ],
)
def test_a_wrong_command_is_noticed(line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        _check(line, whole=True)


_QUOTED = re.compile(
    r"```yaml\n(.*?)```\n\n```\n\$ solon constitution check (\S+)\nError: (.*?)\n```", re.DOTALL
)


@pytest.mark.parametrize("name", ["faulty.yaml", "twice.yaml"])
def test_quoted_messages_are_the_real_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/constitution.md").read_text(encoding="utf-8")
    quoted = {file: (text, message) for text, file, message in _QUOTED.findall(page)}
    text, message = quoted[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ProblemsError) as found:
        load_constitution(name)
    assert str(found.value) == message


def test_readme_shows_the_two_commands() -> None:
    lines = list(_shell_lines(ROOT / "README.md"))
    assert any(line.startswith("make demo") for line in lines)
    assert any(line.startswith("make test") for line in lines)


def test_every_page_is_reached_from_the_index() -> None:
    reached = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in _links(ROOT / "docs/index.md")}
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")} - {ROOT / "docs/index.md"}
    assert pages <= reached


def test_agents_page_stays_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize("page", ["README.md", "docs/judges.md"])
def test_the_judges_figures_are_those_that_the_bench_kept(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    judges = importlib.import_module("judges")
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = text.split("<!-- judges:begin -->\n")[1].split("<!-- judges:end -->")[0]
    assert shown.strip() == judges.table()
