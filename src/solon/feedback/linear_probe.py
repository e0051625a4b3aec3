"""A linear readout of a model's own hidden states, fitted on the constitution's worked comparisons.

Small models cannot say which answer is better, yet their hidden states tell it: pooled over an answer's
tokens, about half-way up the network, they are linearly separable into better and worse. A few dozen
comparisons teach the direction, one forward pass reads an answer, and there is no order to swap.

Fluent text about something else looks like a good answer to such a readout. So a share of the comparisons is
given a second time with the better answer to another question as the worse one; this is how dense retrievers
are taught what belongs to a question (Karpukhin et al. 2020, sec. 3.2, negatives from the same batch).

Layer, pooling and strength are chosen by cross-validation. What is reported for the constitution's own
comparisons is nested: the choice is made anew without the comparisons that it is tested on.

Names carry shapes: n comparisons, L layers, P poolings, D features.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from solon.constitution import MIN_COMPARISONS, Comparison
from solon.digest import seed_from
from solon.engines.base import Conversation, Pooling, ReadableEngine, ScoreRequest, user
from solon.errors import UsageError
from solon.feedback.base import Judgement, Question, fit_to_context, judged, sigmoid
from solon.feedback.readout import Array, Readout, fit

Features = NDArray[np.float32]


@dataclass(frozen=True)
class ProbeSetting:
    """What is read and how strongly it is fitted. `own` is how far a principle's direction may stray."""

    layer: float
    pooling: Pooling
    l2: float
    own: float


@dataclass(frozen=True)
class Grid:
    """The settings that cross-validation chooses from: all combinations."""

    layers: tuple[float, ...]
    poolings: tuple[Pooling, ...]
    l2: tuple[float, ...]
    own: tuple[float, ...]

    def settings(self) -> list[ProbeSetting]:
        return [ProbeSetting(*values) for values in product(self.layers, self.poolings, self.l2, self.own)]


@dataclass(frozen=True)
class Taught:
    """Comparisons as features [n, L, P, D], with their principles and folds.

    `real` is False for those that were made of two comparisons: they teach, and test nothing.
    """

    better: Features
    worse: Features
    principles: tuple[str, ...]
    folds: NDArray[np.int64]
    real: NDArray[np.bool_]

    def only(self, kept: NDArray[np.bool_]) -> "Taught":
        names = tuple(p for p, keep in zip(self.principles, kept, strict=True) if keep)
        return Taught(self.better[kept], self.worse[kept], names, self.folds[kept], self.real[kept])


class LinearProbe:
    """A judge that compares the readouts of two answers."""

    def __init__(
        self,
        engine: ReadableEngine,
        comparisons: Sequence[Comparison],
        grid: Grid,
        folds: int,
        seed: int,
        off_topic: float = 0.0,
    ) -> None:
        """Choose a setting and fit it. Raises UsageError if there are fewer than `MIN_COMPARISONS`."""
        if len(comparisons) < MIN_COMPARISONS:
            raise UsageError(
                f"the linear probe needs at least {MIN_COMPARISONS} comparisons, the constitution has "
                f"{len(comparisons)} for this purpose. Write more under demonstrations.comparisons, "
                "or set judge.kind=choice."
            )
        self._engine = engine
        self._grid = grid
        self._taught = _teach(engine, comparisons, grid, folds, seed, off_topic)
        self.setting = choose(self._taught, grid)
        self._readout = _fit(self._taught, grid, self.setting)

    @property
    def name(self) -> str:
        return f"linear_probe:{self._engine.name}"

    def held_out(self) -> list[float | None]:
        """P(better) of each comparison, by a readout whose setting and weights never saw its fold.

        Folds go by prompt, so that two comparisons of one prompt are never on both sides. None where there is
        no other fold to fit on.
        """
        taught = self._taught
        p_n = np.full(len(taught.principles), np.nan)
        for fold in np.unique(taught.folds):
            test = taught.folds == fold
            if not test.all():
                rest = taught.only(~test)
                setting = choose(rest, self._grid)
                tested = test & taught.real
                p_n[tested] = _read(_fit(rest, self._grid, setting), taught.only(tested), self._grid, setting)
        return [None if np.isnan(p) else float(p) for p in p_n[taught.real]]

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """sigmoid(readout of a - readout of b), by the direction of the question's principle."""
        return judged(questions, self._compare)

    def _compare(self, questions: Sequence[Question]) -> list[Judgement]:
        fitted = [fit_to_context(q, self._engine, _conversation, beside=(q.a, q.b)) for q in questions]
        asked = [q for q, problem, _ in fitted if problem is None]
        scores = iter(self._scores(asked))
        return [
            Judgement(None, problem)
            if problem
            else Judgement(sigmoid(next(scores) - next(scores)), truncated=truncated)
            for _, problem, truncated in fitted
        ]

    def _scores(self, questions: Sequence[Question]) -> list[float]:
        """Readouts in logits: of a and b of each question. Equal texts are read once."""
        requests = [ScoreRequest(q.conversation, text) for q in questions for text in (q.a, q.b)]
        unique = {request: i for i, request in enumerate(dict.fromkeys(requests))}
        layers, poolings = [self.setting.layer], [self.setting.pooling]
        features = self._engine.hidden_features(list(unique), layers, poolings)[:, 0, 0].astype(np.float64)
        chosen = features[[unique[request] for request in requests]]
        principles = [q.principle.id for q in questions for _ in "ab"]
        return [float(score) for score in self._readout.score(chosen, principles)] if questions else []


def _conversation(question: Question) -> Conversation:
    return question.conversation


def _teach(
    engine: ReadableEngine,
    comparisons: Sequence[Comparison],
    grid: Grid,
    folds: int,
    seed: int,
    off_topic: float,
) -> Taught:
    fold_of = [seed_from(seed, c.prompt) % folds for c in comparisons]
    made = off_topic_pairs([c.prompt for c in comparisons], fold_of, off_topic, seed)
    shown = [(c.prompt, c.better, c.worse) for c in comparisons]
    shown += [(comparisons[i].prompt, comparisons[i].better, comparisons[j].better) for i, j in made]
    requests = [ScoreRequest(user(prompt), text) for prompt, *texts in shown for text in texts]
    found = engine.hidden_features(requests, grid.layers, grid.poolings)
    sources = [*range(len(comparisons)), *(i for i, _ in made)]
    return Taught(
        found[::2],
        found[1::2],
        tuple(comparisons[i].principle for i in sources),
        np.array([fold_of[i] for i in sources], dtype=np.int64),
        np.arange(len(sources)) < len(comparisons),
    )


def off_topic_pairs(
    prompts: Sequence[str], folds: Sequence[int], share: float, seed: int
) -> list[tuple[int, int]]:
    """(i, j) for a `share` of the comparisons i: the better answer of j, to another prompt, is the worse one.

    Both are of one fold, so that no text of a comparison is seen by the readout that is tested on it. One
    that has no other prompt in its fold is left out.
    """
    rng = random.Random(seed_from(seed, "off topic"))
    chosen = sorted(rng.sample(range(len(prompts)), round(share * len(prompts))))
    pairs = []
    for i in chosen:
        others = [j for j in range(len(prompts)) if folds[j] == folds[i] and prompts[j] != prompts[i]]
        if others:
            pairs.append((i, rng.choice(others)))
    return pairs


def choose(taught: Taught, grid: Grid) -> ProbeSetting:
    """The setting with the least cross-validated log-loss; the first of equals."""
    settings = grid.settings()
    if len(settings) == 1:
        return settings[0]
    losses = [_validation_loss(taught, grid, setting) for setting in settings]
    return settings[int(np.argmin(losses))]


def _validation_loss(taught: Taught, grid: Grid, setting: ProbeSetting) -> float:
    """Mean of -log P(better), each by a readout fitted on the other folds."""
    losses: list[float] = []
    for fold in np.unique(taught.folds):
        test = taught.folds == fold
        if not test.all():
            readout = _fit(taught.only(~test), grid, setting)
            tested = taught.only(test & taught.real)
            losses.extend(-np.log(np.maximum(_read(readout, tested, grid, setting), 1e-9)))
    return float(np.mean(losses)) if losses else 0.0


def _slice(features: Features, grid: Grid, setting: ProbeSetting) -> Array:
    """The [n, D] of a setting from [n, L, P, D]."""
    layer, pooling = grid.layers.index(setting.layer), grid.poolings.index(setting.pooling)
    return features[:, layer, pooling].astype(np.float64)


def _fit(taught: Taught, grid: Grid, setting: ProbeSetting) -> Readout:
    better, worse = (_slice(side, grid, setting) for side in (taught.better, taught.worse))
    return fit(better, worse, taught.principles, setting.l2, setting.own)


def _read(readout: Readout, taught: Taught, grid: Grid, setting: ProbeSetting) -> Array:
    """P(better) of each comparison."""
    better, worse = (
        readout.score(_slice(side, grid, setting), taught.principles)
        for side in (taught.better, taught.worse)
    )
    return np.array([sigmoid(float(x)) for x in better - worse])
