"""Progress that fits where it is shown: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]
_PLAIN_INTERVAL_SECONDS = 15.0


class _Rate(ProgressColumn):
    """Units a second, once it is known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="dim")


class Reporter:
    """Says what a run is doing: counts, rate and time left."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            # Model output may pass through here: it must not be read as Rich's markup.
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show `total` units of work; call the yielded function with how many more are done."""
        if self._quiet:
            yield lambda done: None
        elif self.console.is_terminal:
            with self._bars(unit) as bars:
                task = bars.add_task(name, total=total)
                yield lambda done: bars.advance(task, done)
        else:
            yield self._lines(name, total, unit)

    def _bars(self, unit: str) -> Progress:
        return Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )

    def _lines(self, name: str, total: int, unit: str) -> Advance:
        start = last = time.monotonic()
        count = 0

        def advance(done: int) -> None:
            nonlocal count, last
            count += done
            now = time.monotonic()
            if count < total and now - last < _PLAIN_INTERVAL_SECONDS:
                return
            last = now
            rate = count / max(now - start, 1e-6)
            left = (total - count) / rate if rate else 0.0
            self.say(f"{name:>10}  {count}/{total} {unit}, {rate:.2f}/s, {left:.0f} s left")

        return advance
