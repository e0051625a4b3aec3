"""`solon init`: a folder with a constitution and a recipe to edit."""

import re
from pathlib import Path

from solon import shipped
from solon.errors import UsageError


def create(folder: Path) -> list[Path]:
    """Copy the starting files into a new or empty folder.

    Raises:
        UsageError: the folder holds something already; nothing is ever overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not empty. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted((shipped.DATA / "init").iterdir()):
        path = folder / source.name
        text = source.read_text(encoding="utf-8")
        # Runs lie under their recipe's name: two projects of one name would overwrite each other's.
        path.write_text(text.replace("name: mine", f"name: {_name(folder)}"), encoding="utf-8")
        written.append(path)
    return written


def _name(folder: Path) -> str:
    """The folder's name with nothing in it that a recipe's name may not have."""
    kept = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")[:64]
    return kept or "mine"
