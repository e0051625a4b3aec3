"""Finds the files that come with Solon: constitutions, recipes, prompt sets, prompt texts."""

from pathlib import Path

from solon.errors import UsageError, did_you_mean

DATA = Path(__file__).parent / "data"
_A = {"constitutions": "constitution", "recipes": "recipe", "prompts": "prompt set"}


def names(kind: str, suffix: str) -> list[str]:
    """The names of the shipped files of one kind (`constitutions`, `recipes`, `prompts`)."""
    return sorted(path.stem for path in (DATA / kind).glob(f"*{suffix}"))


def find(kind: str, name_or_path: str | Path, suffix: str, beside: Path | None = None) -> Path:
    """The path of a file given by the user: a shipped name, or a path (relative to `beside` first).

    Raises:
        UsageError: neither a shipped name nor an existing file.
    """
    given = Path(name_or_path).expanduser()
    if given.suffix == "" and len(given.parts) == 1 and (DATA / kind / f"{given}{suffix}").is_file():
        return DATA / kind / f"{given}{suffix}"
    for path in ([beside / given] if beside else []) + [given]:
        if path.is_file():
            return path
    own = given / f"{_A[kind].split()[0]}{suffix}"
    if own.is_file():
        raise UsageError(f"{_A[kind]} {given}: it is a folder. Name the file: {own}.")
    known = names(kind, suffix)
    hint = did_you_mean(given.stem, known, f"Shipped {kind}: {', '.join(known)}.")
    raise UsageError(f"{_A[kind]} {given}: no such file. {hint}")
