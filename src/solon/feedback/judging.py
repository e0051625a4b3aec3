"""Measuring a judge by itself: on a file of pairs with a known better answer, or on a constitution's own.

What `solon judge` and `solon constitution test` do. A folder then holds `check.json` (the figures),
`judgements.parquet` (every item) and `reliability.svg`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from solon.constitution import Constitution, Purpose
from solon.digest import seed_from
from solon.engines.opening import open_role
from solon.errors import RunError, UsageError
from solon.feedback.calibration import Method, fit_calibration
from solon.feedback.check import Share, share
from solon.feedback.measure import Item, Result, ask, ask_own, items_of_file
from solon.feedback.opening import Bench, Measured, open_judge, timed
from solon.judge_settings import JudgeKind, JudgeSettings
from solon.recipe import apply_override
from solon.records import Checked
from solon.report.plots import calibration
from solon.report.statistics import ece
from solon.role_models import role_source
from solon.store import write_atomically, write_rows
from solon.yamlfile import Document, validate

_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Asked:
    """What is measured: a judge of one kind, taught by a constitution's comparisons of a purpose.

    `settings.model` is its model.
    """

    kind: JudgeKind
    settings: JudgeSettings
    constitution: Constitution
    purpose: Purpose = "training"
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class FileCheck:
    """The figures on a file. `ece_calibrated` has the calibration fitted on the other half of the items."""

    measured: Measured
    ece_calibrated: float
    left_out: dict[str, int]

    def lines(self) -> Iterator[str]:
        """The figures in words, a line each."""
        check, matched = self.measured.check, self.measured.check.length_matched
        low, high = check.ci95
        right = f"right on {check.accuracy:.1%} of {check.n}"
        yield f"{check.kind} on {check.on}: {right} ({low:.1%} to {high:.1%})"
        if not check.beats_chance():
            yield "  The 95 % interval includes chance: do not train on this judge."
        yield f"  floors: always the shorter {check.shorter:.1%}, always the longer {check.longer:.1%}"
        if matched:
            low, high = matched.ci95
            yield f"  lengths alike: {matched.accuracy:.1%} of {matched.n} ({low:.1%} to {high:.1%})"
        if check.flip_rate is not None:
            yield f"  same position after the swap: {check.flip_rate:.1%}"
        yield f"  calibration error: {check.ece:.3f}, calibrated by the other half {self.ece_calibrated:.3f}"
        for reason, n in (*check.unscored.items(), *self.left_out.items()):
            yield f"  not scored: {n} ({reason})"
        if check.truncated:
            yield f"  cut from the left to fit into the context: {check.truncated}"
        yield f"  cost: {check.tokens:,} tokens, {check.seconds:.0f} s"

    def as_dict(self) -> dict[str, Any]:
        plain = self.measured.check.as_dict()
        return {**plain, "ece_calibrated": self.ece_calibrated, "left_out": self.left_out}


def asked_of(
    model: str, kind: str, constitution: Constitution, purpose: str, overrides: Sequence[str] = ()
) -> Asked:
    """What the command line asks for.

    Raises:
        UsageError: there is no such kind, purpose or setting, or no comparison for the purpose.
    """
    document = Document("--judge, --set or --endpoint", {"kind": kind, "model": model}, {})
    for override in overrides:
        apply_override(document, override)
    if (document.data["model"], document.data.get("engine")) == ("embedded", "http"):
        document.data["model"] = ""  # No server's model has this name: the one that it has is meant
    settings = validate(document, JudgeSettings)
    if len(settings.kind) > 1:
        raise UsageError("--set kind: name one judge; run the command again for another.")
    if settings.kinds != settings.kind:
        raise UsageError(
            f"{settings.kind[0]} reads hidden states, which only a local model shows. Leave --endpoint out, "
            "or name another judge."
        )
    purposes: dict[str, Purpose] = {name: name for name in get_args(Purpose)}
    if purpose not in purposes:
        raise UsageError(f"--purpose {purpose}: choose one of {', '.join(purposes)}.")
    if not constitution.comparisons(purposes[purpose]):
        raise UsageError(
            f"the constitution {constitution.name} has no worked comparison for {purpose} principles. "
            "Write some under demonstrations.comparisons."
        )
    return Asked(settings.kind[0], settings, constitution, purposes[purpose])


def at_endpoints(endpoints: Sequence[str]) -> tuple[str, ...]:
    """The settings by which a judge's model runs on servers; none where no server is named."""
    return ("engine=http", f"endpoints={json.dumps(list(endpoints))}") if endpoints else ()


def open_bench(asked: Asked) -> Bench:
    """The model and all that a judge needs. Errors are those of `solon.models`."""
    source = role_source("judge", asked.settings, asked.settings.model)
    engine = open_role("judge", asked.settings, source, "auto", asked.dtype, _BATCH_TOKENS)
    return Bench(asked.settings, asked.constitution, engine, asked.purpose, asked.seed)


def check_on_file(asked: Asked, bench: Bench, data: Path, limit: int | None = None) -> FileCheck:
    """Ask the judge about the pairs of a file, at most `limit`.

    Raises:
        UsageError: the file is faulty.
        RunError: nothing could be scored.
    """
    items, left_out = items_of_file(data, limit, asked.constitution, asked.purpose, asked.seed)
    judge = open_judge(asked.kind, bench)
    measured = timed(asked.kind, data.name, bench.engine, lambda: ask(judge, items, asked.seed))
    if measured is None:
        raise RunError(f"the judge {asked.kind} could score none of the {len(items)} pairs of {data}.")
    return FileCheck(measured, ece_after(asked.settings.calibration, measured.results, asked.seed), left_out)


def ece_after(method: Method, results: Sequence[Result], seed: int) -> float:
    """Calibration error when each half of the items is calibrated by the other (cross-fitting)."""
    scored = [(r, r.p_better) for r in results if r.p_better is not None]
    half = [seed_from(seed, r.source, "half") % 2 for r, _ in scored]
    sides = [[p for (_, p), h in zip(scored, half, strict=True) if h == side] for side in (0, 1)]
    mapped = [fit_calibration(method, sides[1 - side]).apply(p) for side in (0, 1) for p in sides[side]]
    return ece([q for p in mapped for q in (p, 1 - p)], [1.0, 0.0] * len(mapped))


def write_check(folder: Path, asked: Asked, found: FileCheck) -> None:
    """Write the figures, the items and the reliability figure."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "model": asked.settings.model,
        "constitution": {"name": asked.constitution.name, "digest": asked.constitution.digest},
        "purpose": asked.purpose,
        "seed": asked.seed,
        "settings": asked.settings.model_dump(mode="json"),
    }
    write_atomically(folder / "check.json", json.dumps({**about, "check": found.as_dict()}, indent=1))
    write_rows(folder / "judgements.parquet", Checked, found.measured.rows())
    bins = found.measured.check.reliability
    figure = calibration(bins, "Calibration of the judge", "Known to be better (%)")
    write_atomically(folder / "reliability.svg", figure)


@dataclass(frozen=True)
class PrincipleTest:
    """How a judge does on the worked comparisons of one principle; `failed` are those it got wrong."""

    principle: str
    found: Share | None
    failed: tuple[Item, ...]


def run_unit_tests(asked: Asked, bench: Bench) -> list[PrincipleTest]:
    """Each principle's comparisons as its unit tests; a fitted judge is not fitted on what it is asked."""
    items = bench.items()
    results = ask_own(open_judge(asked.kind, bench), items, asked.seed)
    return [
        _principle_test(p.id, [(i, r) for i, r in zip(items, results, strict=True) if r.principle == p.id])
        for p in asked.constitution.of(asked.purpose)
    ]


def _principle_test(principle: str, asked: Sequence[tuple[Item, Result]]) -> PrincipleTest:
    scored = [(item, r.p_better) for item, r in asked if r.p_better is not None]
    failed = tuple(item for item, p in scored if p <= 0.5)
    return PrincipleTest(principle, share([p for _, p in scored]) if scored else None, failed)
