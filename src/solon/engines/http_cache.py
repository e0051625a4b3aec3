"""Answers that servers gave, in a file (SQLite), by a digest of what was asked: nothing is asked twice.

What was asked includes the model's name and the seed, and no address or key: a model that moves to another
server keeps its answers. Serve another model under the same name, and the file must go.
"""

import json
import sqlite3
from pathlib import Path
from threading import Lock
from typing import Any

from solon.digest import digest
from solon.errors import RunError

_BUSY_SECONDS = 60.0


class ReplyCache:
    """May be used by many threads and processes at once. `setting` is named in errors."""

    def __init__(self, path: Path, setting: str) -> None:
        """Open or make the file. Raises RunError: it cannot be opened, or is none."""
        self.path = path
        self._setting = setting
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    @staticmethod
    def key(path: str, body: dict[str, Any]) -> str:
        """The digest by which an answer is kept."""
        return digest([path, body], length=40)

    def get(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to this body, if there is one."""
        row = self._do("SELECT reply FROM replies WHERE asked = ?", self.key(path, body))
        return json.loads(row[0]) if row else None

    def put(self, path: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
        self._do("INSERT OR REPLACE INTO replies VALUES (?, ?)", self.key(path, body), json.dumps(reply))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _do(self, statement: str, *values: str) -> Any:
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path}: the cache of answers cannot be used ({error}). Remove the file, or set "
            f"{self._setting}=off or another file."
        )
