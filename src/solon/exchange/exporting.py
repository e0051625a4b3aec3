"""A constitution in the format of another project.

Imported again, it gives back every wording that the format can hold, but for the character U+0085, which
becomes a line break. What a format has no place for is left out; docs/exchange.md lists it.
"""

import csv
import io
import json
from collections.abc import Callable

from solon.constitution import Constitution
from solon.exchange import huggingface, paper
from solon.exchange.drafts import CSV, HUGGINGFACE, PAPER_COMPARISONS, PAPER_REVISIONS, Format, Worked
from solon.exchange.files import format_named
from solon.exchange.statements import COLUMNS


def export_constitution(constitution: Constitution, format_: str) -> str:
    """The text of a file of that format.

    Raises:
        UsageError: there is no such format; the message names all of them.
    """
    return _WRITERS[format_named(format_)](constitution)


def _revisions(constitution: Constitution) -> str:
    return _json({p.id: paper.as_revisions(p.critique, p.revision) for p in constitution.principles})


def _comparisons(constitution: Constitution) -> str:
    return _json([paper.as_comparison(p.question) for p in constitution.principles])


def _huggingface(constitution: Constitution) -> str:
    pairs = [{"critic": p.critique, "revision": p.revision} for p in constitution.principles]
    chats = []
    for one in constitution.demonstrations.revisions:
        asked = constitution.principle(one.principle)
        worked = Worked(one.prompt, one.answer, asked.critique, one.critique, asked.revision, one.revision)
        chats.append(huggingface.as_chat(worked))
    return _json({"constitutions": pairs, "system_chat": chats})


def _csv(constitution: Constitution) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(p, column) for column in COLUMNS] for p in constitution.principles)
    return file.getvalue()


def _json(data: object) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


_WRITERS: dict[Format, Callable[[Constitution], str]] = {
    PAPER_REVISIONS: _revisions,
    PAPER_COMPARISONS: _comparisons,
    HUGGINGFACE: _huggingface,
    CSV: _csv,
}
