"""Content digests: the same content gives the same short name on every machine and in every process."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def digest(content: Any, length: int = 16) -> str:
    """SHA-256 of JSON-able `content` with sorted keys, as `length` hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def seed_from(*parts: Any) -> int:
    """A 63-bit seed for what `parts` name. Seeds made so need no state to be carried over a crash."""
    return int(digest(list(parts)), 16) >> 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def folder_digest(folder: Path, length: int = 16) -> str:
    """Digest of the names and contents of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[str(path.relative_to(folder)), file_sha256(path)] for path in files], length)
