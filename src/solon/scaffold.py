"""`solon init`: a folder with a constitution and a recipe to edit."""

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
        path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        written.append(path)
    return written
