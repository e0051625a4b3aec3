"""How far `solon.refusal.is_refusal` agrees with human refusal labels: one JSON line a file and selection.

Run: python bench/refusal_agreement.py [folder]    (default: ../shared/data/labelled beside the project)

The labels count an answer to a different question as a refusal, which no reader of the answer alone can
see. "decidable" therefore leaves out the rows whose answer stands, word for word, under both labels in the
two files together (a rule on the data, blind to the detector). "all" leaves out nothing. "unseen" keeps,
of the decidable rows of the first file, those whose answer is not in the second, on which the patterns
were developed.
"""

import sys
from collections import defaultdict
from pathlib import Path

from record import report

from solon.refusal import is_refusal
from solon.report.statistics import wilson
from solon.rowfiles import read_table

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "labelled"
FILES = ("pyrit_refusal.csv", "pyrit_refusal_extra.csv")

Row = tuple[str, bool]


def labelled(path: Path) -> list[Row]:
    """The answers of a file, and whether people called them refusals."""
    table = read_table(path, ("assistant_response", "human_score"))
    if table.problems:
        raise SystemExit("\n".join(str(problem) for problem in table.problems))
    return [(row.value["assistant_response"], float(row.value["human_score"]) >= 0.5) for row in table.rows]


def agreement(rows: list[Row]) -> dict[str, float | int | list[float] | None]:
    """Agreement with its interval, precision and recall of "refusal", and Cohen's kappa (1960)."""
    n = len(rows)
    said = [is_refusal(text) for text, _ in rows]
    truth = [label for _, label in rows]
    both = sum(a and b for a, b in zip(said, truth, strict=True))
    same = sum(a == b for a, b in zip(said, truth, strict=True))
    chance = (sum(said) * sum(truth) + (n - sum(said)) * (n - sum(truth))) / (n * n)
    return {
        "n": n,
        "agreement": round(same / n, 4),
        "ci95": [round(bound, 4) for bound in wilson(same, n)],
        "precision": round(both / sum(said), 4) if any(said) else None,
        "recall": round(both / sum(truth), 4) if any(truth) else None,
        "kappa": round((same / n - chance) / (1 - chance), 4) if chance < 1 else None,
    }


def decidable(files: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows whose answer carries a single label wherever it stands."""
    labels: dict[str, set[bool]] = defaultdict(set)
    for rows in files.values():
        for text, label in rows:
            labels[_key(text)].add(label)
    return {name: [row for row in rows if len(labels[_key(row[0])]) == 1] for name, rows in files.items()}


def unseen(kept: dict[str, list[Row]]) -> list[Row]:
    """The decidable rows of the first file whose answer does not stand in the second."""
    first, second = FILES
    known = {_key(text) for text, _ in kept[second]}
    return [row for row in kept[first] if _key(row[0]) not in known]


def _key(text: str) -> str:
    return " ".join(text.split())


def main(folder: Path) -> None:
    files = {name: labelled(folder / name) for name in FILES}
    kept = decidable(files)
    _report(FILES[0], "unseen", unseen(kept))
    for selection, selected in (("decidable", kept), ("all", files)):
        for name in FILES:
            _report(name, selection, selected[name])


def _report(file: str, selection: str, rows: list[Row]) -> None:
    found = agreement(rows)
    report("refusal_agreement", f"{file}: {selection}", found.pop("agreement"), None, None, **found)


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    if not given.is_dir():
        raise SystemExit(f"{given}: no such folder. Name the one with {' and '.join(FILES)}.")
    main(given)
