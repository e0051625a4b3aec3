"""YAML into a pydantic model, with every fault reported at once by file and line.

YAML itself keeps no line numbers after loading and silently lets a repeated key win; users edit these
files by hand, so both matter. The node tree is read once for the positions, then validated.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from solon.errors import Problem, ProblemsError, UsageError
from solon.faults import Location, explained

Model = TypeVar("Model", bound=BaseModel)


class Document:
    """A parsed YAML file: its data, and the line on which each key or item stands."""

    def __init__(self, file: str, data: Any, lines: dict[Location, int]) -> None:
        self.file = file
        self.data = data
        self._lines = lines
        self._set: list[Location] = []

    def override(self, location: Location) -> None:
        """Note that what stands at `location` was not read from the file, but set by the command line."""
        self._set.append(location)

    def line(self, location: Location) -> int | None:
        """The line of `location`, or of its closest ancestor that stands in the file."""
        while location not in self._lines and location:
            location = location[:-1]
        return self._lines.get(location)

    def problem(self, location: Location, what: str, fix: str) -> Problem:
        if not self._lines:  # It was never a file
            return Problem(self.file, None, what, fix)
        if any(location[: len(at)] == at for at in self._set):
            return Problem("--set", None, what, fix)
        if any(at[: len(location)] == location for at in self._set):
            place = f"{self.file} with --set" if location in self._lines else "--set"
            return Problem(place, None, what, fix)
        return Problem(self.file, self.line(location), what, fix)


def read_text(path: Path) -> str:
    """The file as UTF-8 text.

    Raises:
        UsageError: the file is absent, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: this is not UTF-8 text. Save the file as UTF-8.") from error
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UsageError(f"{path}: {reason}. Check the path and its permissions.") from error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with a place for every value that cannot be made (a day 45, a number `0x_`)."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            what = f"this reads as a value of the type {kind}, and is none"
            raise ConstructorError(None, None, what, node.start_mark) from error


def load(path: Path) -> Document:
    """Parse a YAML file without ever constructing Python objects from tags.

    Raises:
        UsageError: the file cannot be read.
        ProblemsError: it is not YAML, has duplicate keys, or is no mapping at the top.
    """
    document = parse(read_text(path), str(path))
    if not isinstance(document.data, dict):
        raise ProblemsError([Problem(str(path), 1, "the file holds no keys", "Write `key: value` lines.")])
    return document


def parse(text: str, file: str) -> Document:
    """Parse YAML of any shape; `file` stands in the messages.

    Raises:
        ProblemsError: it is not YAML, has duplicate keys, or holds itself.
    """
    try:
        return _parse(text, file)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "not valid YAML"
        line = mark.line + 1 if mark else None
        fix = "Check the indentation and the quotes around this line."
        raise ProblemsError([Problem(file, line, str(what), fix)]) from error
    except RecursionError as error:
        raise ProblemsError([_too_deep(file, None)]) from error
    except (ValueError, OverflowError) as error:
        # PyYAML's own scanner: an escape such as "\UFFFFFFFF" that is no character.
        fix = "Correct the escapes in its quoted texts."
        raise ProblemsError([Problem(file, None, f"not valid YAML ({error})", fix)]) from error


def _parse(text: str, file: str) -> Document:
    loader = _Loader(text)
    try:
        root = _composed(loader, file)
        places = _Places(file)
        places.walk(root, ())
        if places.problems:
            raise ProblemsError(places.problems)
        return Document(file, None if root is None else loader.construct_document(root), places.lines)
    finally:
        loader.dispose()


def _composed(loader: _Loader, file: str) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    except RecursionError as error:
        raise ProblemsError([_too_deep(file, loader.line + 1)]) from error


def _too_deep(file: str, line: int | None) -> Problem:
    return Problem(file, line, "this is nested too deeply", "Write fewer levels within each other.")


class _Places:
    """The lines of keys and items, read off the node tree, and what is wrong with the tree itself."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Location, int] = {(): 1}
        self.problems: list[Problem] = []
        self._file = file
        self._open: set[int] = set()
        self._seen: set[int] = set()

    def walk(self, node: yaml.Node | None, at: Location) -> None:
        """Note all that stands below `node`, once: what an alias repeats stands on the alias's line."""
        if id(node) in self._open:
            what = "an alias stands inside of what it repeats"
            self.problems.append(Problem(self._file, self.lines[at], what, "Write the value out."))
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            self._items(node, at)
        elif isinstance(node, yaml.MappingNode):
            self._keys(node, at)
        self._open.discard(id(node))

    def _items(self, node: yaml.SequenceNode, at: Location) -> None:
        for index, item in enumerate(node.value):
            self.lines[(*at, index)] = item.start_mark.line + 1
            self.walk(item, (*at, index))

    def _keys(self, node: yaml.MappingNode, at: Location) -> None:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # It is refused when the values are made.
            here = (*at, key.value)
            line = key.start_mark.line + 1
            if here in self.lines:
                what = f"the key `{key.value}` stands here and on line {self.lines[here]}"
                self.problems.append(Problem(self._file, line, what, "Keep one of them."))
            self.lines[here] = line
            self.walk(value, here)


def validate(document: Document, model: type[Model]) -> Model:
    """Build `model` from the document.

    Raises:
        ProblemsError: with one entry for every fault that pydantic found.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = [document.problem(*fault) for fault in explained(error.errors(), model, document.data)]
        raise ProblemsError(sorted(found, key=lambda problem: problem.line or 0)) from error
