"""A linear readout of a model's own hidden states, fitted on the constitution's worked comparisons.

Small models cannot say which answer is better, yet their hidden states tell it: pooled over an answer's
tokens, about half-way up the network, they are linearly separable into better and worse. A few dozen
comparisons teach the direction, one forward pass reads an answer, and there is no order to swap.

Fluent text about something else looks like a good answer to such a readout. So a share of the comparisons is
given a second time with the better answer to another question as the worse one; this is how dense retrievers
are taught what belongs to a question (Karpukhin et al. 2020, sec. 3.2, negatives from the same batch).

On a red-team prompt a refusal is often the better answer, on an ordinary one hardly ever; one direction
cannot say both. So there is a direction for either kind of prompt around a common one, and around these one
for each principle, as far as the comparisons call for it.

Layer, pooling and strengths are chosen by cross-validation. What is reported for the constitution's own
comparisons is nested: the choice is made anew without the comparisons that it is tested on.

Names carry shapes: n comparisons, L layers, P poolings, D features.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, product
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from solon.constitution import MIN_COMPARISONS, AskedOn, Comparison, Principle
from solon.digest import seed_from
from solon.engines.base import Conversation, Pooling, ReadableEngine, ScoreRequest, user
from solon.errors import UsageError
from solon.feedback.base import Judgement, Question, fit_to_context, judged, sigmoid
from solon.feedback.readout import Array, Readout, fit_path
from solon.records import PromptKind

Features = NDArray[np.float32]
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)


@dataclass(frozen=True)
class ProbeSetting:
    """What is read and how strongly it is fitted.

    `own` is how far a principle's direction may stray, `kinds` how far that of a kind of prompt.
    """

    layer: float
    pooling: Pooling
    l2: float
    own: float
    kinds: float


@dataclass(frozen=True)
class Grid:
    """The settings that cross-validation chooses from."""

    layers: tuple[float, ...]
    poolings: tuple[Pooling, ...]
    l2: tuple[float, ...]
    own: tuple[float, ...]
    kinds: tuple[float, ...] = (0.0,)

    def places(self) -> list[list[ProbeSetting]]:
        """The settings of every layer and pooling, with the loosest of `own` and `kinds`."""
        strays = (max(self.own), max(self.kinds))
        return [self._path(*place, *strays) for place in product(self.layers, self.poolings)]

    def at(self, place: ProbeSetting) -> list[list[ProbeSetting]]:
        """All settings of one layer and pooling."""
        strays = product(self.own, self.kinds)
        return [self._path(place.layer, place.pooling, own, kinds) for own, kinds in strays]

    def _path(self, layer: float, pooling: Pooling, own: float, kinds: float) -> list[ProbeSetting]:
        """Settings that differ in `l2` alone."""
        return [ProbeSetting(layer, pooling, l2, own, kinds) for l2 in self.l2]


@dataclass(frozen=True)
class Groups:
    """The directions that stray from the common one: those of the kinds of prompts, and of the principles."""

    principles: tuple[str, ...]

    def shares(self, principles: Sequence[str], asked_on: Sequence[AskedOn], setting: ProbeSetting) -> Array:
        """[n, G] for `readout.fit`; what is asked on any prompt is half of either kind."""
        of_kind = [[_belongs(on, kind) for kind in KINDS] for on in asked_on]
        of_principle = [[float(name == own) for own in self.principles] for name in principles]
        scaled = (np.sqrt(setting.kinds) * np.array(of_kind), np.sqrt(setting.own) * np.array(of_principle))
        return np.concatenate(scaled, 1)


def _belongs(asked_on: AskedOn, kind: PromptKind) -> float:
    return 1 / len(KINDS) if asked_on == "any" else float(asked_on == kind)


@dataclass(frozen=True)
class Taught:
    """Comparisons as features [n, L, P, D], with their principles and folds.

    `real` is False for those that were made of two comparisons: they teach, and test nothing.
    """

    better: Features
    worse: Features
    principles: tuple[str, ...]
    asked_on: tuple[AskedOn, ...]
    folds: NDArray[np.int64]
    real: NDArray[np.bool_]

    def only(self, kept: NDArray[np.bool_]) -> "Taught":
        return Taught(
            self.better[kept],
            self.worse[kept],
            tuple(compress(self.principles, kept)),
            tuple(compress(self.asked_on, kept)),
            self.folds[kept],
            self.real[kept],
        )


@dataclass(frozen=True)
class Fitted:
    """What a probe has learned: all that it judges by."""

    setting: ProbeSetting
    groups: Groups
    readout: Readout


class LinearProbe:
    """A judge that compares the readouts of two answers."""

    def __init__(self, engine: ReadableEngine, fitted: Fitted) -> None:
        """Judge by what was learned before."""
        self._engine = engine
        self.fitted = fitted

    @property
    def name(self) -> str:
        return f"linear_probe:{self._engine.name}"

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        """sigmoid(readout of a - readout of b), by the direction of the principle and the kind of prompt."""
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
        layers, poolings = [self.fitted.setting.layer], [self.fitted.setting.pooling]
        features = self._engine.hidden_features(list(unique), layers, poolings)[:, 0, 0].astype(np.float64)
        chosen = features[[unique[request] for request in requests]]
        if not questions:
            return []
        principles = [q.principle.id for q in questions for _ in "ab"]
        asked_on = [q.kind or q.principle.asked_on for q in questions for _ in "ab"]
        shares = self.fitted.groups.shares(principles, asked_on, self.fitted.setting)
        return [float(score) for score in self.fitted.readout.score(chosen, shares)]


class TaughtProbe(LinearProbe):
    """A probe with the comparisons that it was fitted on, which can say how well it does without each."""

    def __init__(
        self,
        engine: ReadableEngine,
        comparisons: Sequence[tuple[Comparison, Principle]],
        grid: Grid,
        folds: int,
        seed: int,
        off_topic: float = 0.0,
    ) -> None:
        """Choose a setting and fit it to comparisons, each with its principle.

        Raises UsageError if there are fewer than `MIN_COMPARISONS`.
        """
        if len(comparisons) < MIN_COMPARISONS:
            raise UsageError(
                f"the linear probe needs at least {MIN_COMPARISONS} comparisons, the constitution has "
                f"{len(comparisons)} for this purpose. Write more under demonstrations.comparisons, "
                "or set judge.kind=choice."
            )
        self._taught = _teach(engine, comparisons, grid, folds, seed, off_topic)
        groups = Groups(tuple(sorted({principle.id for _, principle in comparisons})))
        self._reading = _Reading(grid, groups)
        setting = self._reading.choose(self._taught)
        [readout] = self._reading.fit(self._taught, [setting])
        super().__init__(engine, Fitted(setting, groups, readout))

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
                rest, tested = taught.only(~test), test & taught.real
                setting = self._reading.choose(rest)
                [readout] = self._reading.fit(rest, [setting])
                p_n[tested] = self._reading.read(readout, taught.only(tested), setting)
        return [None if np.isnan(p) else float(p) for p in p_n[taught.real]]


def _conversation(question: Question) -> Conversation:
    return question.conversation


def _teach(
    engine: ReadableEngine,
    taught: Sequence[tuple[Comparison, Principle]],
    grid: Grid,
    folds: int,
    seed: int,
    off_topic: float,
) -> Taught:
    comparisons = [comparison for comparison, _ in taught]
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
        tuple(taught[i][1].asked_on for i in sources),
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


@dataclass(frozen=True)
class _Reading:
    """Fits and reads taught comparisons at the settings of a grid."""

    grid: Grid
    groups: Groups

    def choose(self, taught: Taught) -> ProbeSetting:
        """The setting with the least cross-validated log-loss; the first of equals.

        First the layer and the pooling, then the strengths there: all combinations would take minutes.
        """
        place = self._best(taught, self.grid.places())
        return self._best(taught, self.grid.at(place))

    def _best(self, taught: Taught, paths: Sequence[Sequence[ProbeSetting]]) -> ProbeSetting:
        settings = [setting for path in paths for setting in path]
        if len(settings) == 1:
            return settings[0]
        losses = [loss for path in paths for loss in self._validation_losses(taught, path)]
        return settings[int(np.argmin(losses))]

    def _validation_losses(self, taught: Taught, path: Sequence[ProbeSetting]) -> Array:
        """Of each setting: mean of -log P(better), each by a readout fitted on the other folds."""
        losses: list[Array] = []
        for fold in np.unique(taught.folds):
            test = taught.folds == fold
            if not test.all():
                tested = taught.only(test & taught.real)
                fitted = zip(self.fit(taught.only(~test), path), path, strict=True)
                p_Sn = np.stack([self.read(readout, tested, setting) for readout, setting in fitted])
                losses.append(-np.log(np.maximum(p_Sn, 1e-9)))
        return np.concatenate(losses, 1).mean(1) if losses else np.zeros(len(path))

    def fit(self, taught: Taught, path: Sequence[ProbeSetting]) -> list[Readout]:
        """A readout for each of the settings, which differ in `l2` alone."""
        better, worse = (self._slice(side, path[0]) for side in (taught.better, taught.worse))
        shares = self.groups.shares(taught.principles, taught.asked_on, path[0])
        return fit_path(better, worse, [setting.l2 for setting in path], shares)

    def read(self, readout: Readout, taught: Taught, setting: ProbeSetting) -> Array:
        """P(better) of each comparison."""
        shares = self.groups.shares(taught.principles, taught.asked_on, setting)
        better, worse = (
            readout.score(self._slice(side, setting), shares) for side in (taught.better, taught.worse)
        )
        return np.array([sigmoid(float(x)) for x in better - worse])

    def _slice(self, features: Features, setting: ProbeSetting) -> Array:
        """The [n, D] of a setting from [n, L, P, D]."""
        layer = self.grid.layers.index(setting.layer)
        return features[:, layer, self.grid.poolings.index(setting.pooling)].astype(np.float64)
