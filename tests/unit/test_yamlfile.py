"""YAML that is hostile or mistyped: a message with file and line, never a traceback."""

import time
from pathlib import Path

import pytest

from solon.errors import ProblemsError
from solon.yamlfile import load, parse


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2024-13-45\n", 2, "of the type timestamp, and is none"),
        ("a:\n  - 1\n  - 0x_\n", 3, "of the type int, and is none"),
        (f"a: {'9' * 5000}\n", 1, "of the type int, and is none"),
        ("a: !!int ''\n", 1, "of the type int, and is none"),
        ("a: !!bool maybe\n", 1, "of the type bool, and is none"),
        ("a: &a [*a]\n", 1, "an alias stands inside of what it repeats"),
        ("a: &a\n  b: 1\n  c: *a\n", 3, "an alias stands inside of what it repeats"),
        ("a: &a\n  <<: *a\n", 2, "an alias stands inside of what it repeats"),
        ("a: 1\nb: " + "[" * 5000, 2, "nested too deeply"),
        ("a:\n" + "".join(f"{' ' * i}-\n" for i in range(1, 900)), None, "nested too deeply"),
        ("a: 1\n[b]: 2\n", 2, "unhashable key"),
        ('a: "\\UFFFFFFFF"\n', None, "not valid YAML"),
        ("a: 1\na: 2\n", 2, "stands here and on line 1"),
    ],
)
def test_faults_have_a_place(text: str, line: int | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ProblemsError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    assert what in problem.what
    assert problem.fix
    if line is not None:
        assert problem.line == line


def test_what_an_alias_repeats_stands_on_the_line_of_the_alias() -> None:
    document = parse("a: &a {x: {y: 1}}\nb: *a\n", "r.yaml")
    assert document.data == {"a": {"x": {"y": 1}}, "b": {"x": {"y": 1}}}
    assert (document.line(("a", "x", "y")), document.line(("b", "x", "y"))) == (1, 2)


def test_aliases_of_aliases_take_no_longer_than_the_file() -> None:
    """Nine to the power of forty places would be counted, if each were visited as often as it is repeated."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    start = time.monotonic()
    parse("\n".join(["a0: &a0 [x]", *levels]), "r.yaml")
    assert time.monotonic() - start < 5


def test_no_mapping_is_no_file_of_ours(tmp_path: Path) -> None:
    for text in ("", "- a\n", "text\n"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ProblemsError, match="holds no keys"):
            load(tmp_path / "r.yaml")
