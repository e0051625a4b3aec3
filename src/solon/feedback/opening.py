"""Opening the judges that a recipe allows, measuring them, and picking the best."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from solon.constitution import Constitution, Purpose
from solon.digest import seed_from
from solon.engines.base import Engine, ReadableEngine, used_by
from solon.errors import RunError, UsageError
from solon.feedback.base import Judge
from solon.feedback.calibration import Calibrated, Calibration, fit_calibration
from solon.feedback.chain_of_thought import ChainOfThoughtJudge, Thinking
from solon.feedback.check import Check, summarise
from solon.feedback.choice import ChoiceJudge
from solon.feedback.demonstrated import demonstrated
from solon.feedback.ensemble import Ensemble, OverPrinciples
from solon.feedback.likelihood import LikelihoodJudge, Reading
from solon.feedback.linear_probe import Fitted, Grid, LinearProbe, TaughtProbe
from solon.feedback.measure import Item, Result, ask, ask_own, items_of, items_of_file
from solon.feedback.score import ScoreJudge
from solon.judge_settings import JudgeKind, JudgeSettings
from solon.records import Checked

COMPARISONS = "comparisons"


@dataclass(frozen=True)
class Bench:
    """What judges are opened with: settings, constitution, the model, and which principles they serve."""

    settings: JudgeSettings
    constitution: Constitution
    engine: Engine
    purpose: Purpose
    seed: int

    def items(self) -> list[Item]:
        return items_of(self.constitution.comparisons(self.purpose), self.constitution)

    def folds(self) -> list[int]:
        """The fold of every comparison, by prompt."""
        return [seed_from(self.seed, item.prompt) % self.settings.folds for item in self.items()]


@dataclass(frozen=True)
class Measured:
    """A judge's results and figures on one set of items (`check.on`)."""

    check: Check
    results: tuple[Result, ...]

    def rows(self) -> list[Checked]:
        """The items as rows of a run folder."""
        kind, on = self.check.kind, self.check.on
        return [
            Checked(
                origin=kind,
                principle=r.principle,
                kind=kind,
                on=on,
                source=r.source,
                p_better=r.p_better,
                unscored=r.unscored,
                flipped=r.flipped,
                truncated=r.truncated,
            )
            for r in self.results
        ]


@dataclass(frozen=True)
class Picked:
    """The best of the allowed judges, calibrated, and what was measured of each kind."""

    judge: Calibrated
    kind: JudgeKind
    measured: Mapping[JudgeKind, tuple[Measured, ...]]

    @property
    def checks(self) -> list[Check]:
        """The picked judge's figures, those on the constitution's comparisons first."""
        return [m.check for m in self.measured[self.kind]]

    @property
    def weak(self) -> list[Check]:
        """The checks in which the picked judge is not shown to be better than chance."""
        return [check for check in self.checks if not check.beats_chance(len(self.measured))]


def open_judge(kind: JudgeKind, bench: Bench) -> Judge:
    """A judge of that kind, uncalibrated, taught by the comparisons of the bench's purpose alone."""
    return _over_principles(_OPENERS[kind](bench), bench)


def _over_principles(judge: Judge, bench: Bench) -> Judge:
    settings = bench.settings
    if settings.principles > 1:
        principles = bench.constitution.of(bench.purpose)
        return OverPrinciples(judge, principles, settings.principles, bench.seed)
    return judge


def _linear_probe(bench: Bench) -> Judge:
    probe, settings, purpose = bench.settings.probe, bench.settings, bench.purpose
    shown = [(c, bench.constitution.principle(c.principle)) for c in bench.constitution.comparisons(purpose)]
    grid = Grid(probe.layers, probe.poolings, probe.l2, probe.own, probe.kinds)
    return TaughtProbe(_readable(bench.engine), shown, grid, settings.folds, bench.seed, probe.off_topic)


def _readable(engine: Engine) -> ReadableEngine:
    if not isinstance(engine, ReadableEngine):
        raise UsageError(f"linear_probe reads hidden states, which {engine.name} does not show.")
    return engine


def _choice(bench: Bench) -> Judge:
    comparisons, principles = bench.constitution.comparisons(bench.purpose), bench.constitution.principles
    shown = demonstrated(comparisons, principles, bench.settings.demonstrations, bench.seed)
    return ChoiceJudge(bench.engine, shown)


def _chain_of_thought(bench: Bench) -> Judge:
    t = bench.settings.thinking
    return ChainOfThoughtJudge(bench.engine, Thinking(t.sampling, t.samples, t.clamp, bench.seed))


def _likelihood(bench: Bench) -> Judge:
    allowed = bench.settings.likelihood
    readings = [
        Reading(reduction, against) for against in allowed.against for reduction in allowed.reductions
    ]
    known = [item.question() for item in bench.items()]
    return LikelihoodJudge(bench.engine, readings, known, bench.folds())


def _score(bench: Bench) -> Judge:
    return ScoreJudge(bench.engine)


def _ensemble(bench: Bench) -> Judge:
    """The members are calibrated first: probabilities of different meaning have no mean."""
    members = [_OPENERS[kind](bench) for kind in bench.settings.members]
    return Ensemble([_calibrated(m, ask_own(m, bench.items(), bench.seed), bench.settings) for m in members])


_OPENERS: Mapping[JudgeKind, Callable[[Bench], Judge]] = {
    "linear_probe": _linear_probe,
    "choice": _choice,
    "chain_of_thought": _chain_of_thought,
    "likelihood": _likelihood,
    "score": _score,
    "ensemble": _ensemble,
}


def _calibrated(judge: Judge, results: Sequence[Result], settings: JudgeSettings) -> Calibrated:
    scored = [r.p_better for r in results if r.p_better is not None]
    return Calibrated(judge, fit_calibration(settings.calibration, scored))


def reopen(
    kind: JudgeKind, calibration: Calibration, bench: Bench, fitted: Fitted | None = None
) -> Calibrated:
    """A judge that was picked and calibrated before; a probe by what it has learned, if that is given."""
    if fitted is None:
        return Calibrated(open_judge(kind, bench), calibration)
    return Calibrated(_over_principles(LinearProbe(_readable(bench.engine), fitted), bench), calibration)


def pick(bench: Bench, check_file: Path | None = None) -> Picked:
    """Open and measure the allowed judges; the best on all items together, calibrated on them.

    Raises:
        RunError: no judge could score a single item.
        UsageError: the check file is faulty, or a judge lacks what it needs.
    """
    outside = _outside(bench, check_file)
    judges = {kind: open_judge(kind, bench) for kind in dict.fromkeys(bench.settings.kinds)}
    measured = {kind: measure(kind, judge, bench, outside) for kind, judge in judges.items()}
    wanted = 1 + len(outside)
    usable = {kind: sets for kind, sets in measured.items() if len(sets) == wanted}
    if not usable:
        where = f"the constitution's comparisons{' or of the check file' if outside else ''}"
        raise RunError(f"no judge could score any of {where}. Choose another judge.")
    best = max(usable, key=lambda kind: _accuracy(usable[kind]))
    results = [result for one in usable[best] for result in one.results]
    return Picked(_calibrated(judges[best], results, bench.settings), best, usable)


def _outside(bench: Bench, check_file: Path | None) -> dict[str, list[Item]]:
    if check_file is None:
        return {}
    most = bench.settings.check_pairs
    items, _ = items_of_file(check_file, most, bench.constitution, bench.purpose, bench.seed)
    return {check_file.name: items}


def measure(
    kind: str, judge: Judge, bench: Bench, outside: Mapping[str, Sequence[Item]]
) -> tuple[Measured, ...]:
    """The judge's figures on the constitution's comparisons and on every other set of items."""
    sets: list[tuple[str, Callable[[], list[Result]]]] = [
        (COMPARISONS, lambda: ask_own(judge, bench.items(), bench.seed))
    ]
    sets += [(name, lambda items=items: ask(judge, items, bench.seed)) for name, items in outside.items()]  # type: ignore[misc]
    return tuple(found for name, work in sets if (found := timed(kind, name, bench.engine, work)))


def timed(kind: str, on: str, engine: Engine, work: Callable[[], list[Result]]) -> Measured | None:
    """Results and figures with their cost; None where nothing was scored."""
    used = used_by(engine)
    start, before = time.monotonic(), used()
    results = work()
    check = summarise(kind, on, results, time.monotonic() - start, used() - before)
    return Measured(check, tuple(results)) if check else None


def _accuracy(sets: Sequence[Measured]) -> float:
    """Share of all items that are scored and right: a judge that says little is no better for it."""
    right = sum(m.check.accuracy * m.check.n for m in sets)
    return right / sum(len(m.results) for m in sets)
