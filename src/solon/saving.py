"""Saving models: whatever a library raises when it cannot write becomes one error with place and fix.

Imports neither torch nor safetensors; the command line asks it about errors, too.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from solon.errors import RunError, SolonError

# torch.save says no more than where in its C++ the writing failed.
_TORCH_SAVE = ("PytorchStreamWriter", "inline_container")


def is_kind(error: Exception, module: str, name: str) -> bool:
    """Whether an error is of a library's class. The library is not imported: unloaded, it raised nothing."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def cannot_write(error: Exception) -> bool:
    """Whether this is how a library says that it could not write a file.

    safetensors has an error of its own, torch.save raises a RuntimeError and tokenizers a bare Exception;
    none of them is an OSError or carries an errno.
    """
    if isinstance(error, SolonError):
        return False
    if isinstance(error, OSError) or is_kind(error, "safetensors", "SafetensorError"):
        return True
    text = str(error)
    return "(os error " in text or any(name in text for name in _TORCH_SAVE)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Write below `place`. Raises RunError, with place and fix, where a library cannot."""
    try:
        yield
    except Exception as error:
        if not cannot_write(error):
            raise
        what = f"{place}: cannot be written ({first_line(error)})"
        raise RunError(f"{what}. Free some space or mend the rights, and run again.") from error


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which then takes the place of `folder`: libraries write in no atomic way.

    Raises:
        RunError: it cannot be written. What stood in `folder` stays; the part that was written is removed.
    """
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(folder):
            yield temporary
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
