"""A linear readout of a model's own hidden states, fitted on the constitution's worked comparisons.

Small models cannot say which answer is better, yet their hidden states tell it: the mean over an
answer's tokens, about half-way up the network, is linearly separable into better and worse. A few dozen
comparisons teach the direction, one forward pass reads an answer, and there is no order to swap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from solon.constitution import MIN_COMPARISONS, Comparison
from solon.digest import seed_from
from solon.engines.base import HiddenStates, ScoreRequest, user
from solon.errors import UsageError
from solon.feedback.base import Judgement, Question, sigmoid, unanswerable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Readout:
    """A direction in standardised feature space; the score of an answer is its projection, in logits."""

    weights: Array
    mean: Array
    scale: Array

    def score(self, features: Array) -> Array:
        """Features [n, width] to scores [n]. A difference of two is the log-odds of the first."""
        projected: Array = ((features - self.mean) / self.scale) @ self.weights
        return projected


def fit(better: Array, worse: Array, l2: float) -> Readout:
    """Logistic regression on pair differences, [n, width] each, without intercept.

    Minimises sum log(1 + exp(-w·(x_better - x_worse))) + l2/2 |w|^2 (Bradley and Terry 1952 with linear
    strengths). Convex, so the optimum does not depend on the start.
    """
    both = np.concatenate([better, worse])
    mean, scale = both.mean(0), both.std(0) + 1e-6
    difference = torch.from_numpy((better - worse) / scale)
    weights = torch.zeros(difference.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.softplus(-(difference @ weights)).sum() + l2 / 2 * weights.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Readout(weights.detach().numpy(), mean, scale)


class LinearProbe:
    """A judge that compares the readouts of two answers.

    One direction is read for all principles of its comparisons: a handful of examples a principle is
    too few for a direction each. The principle of a question is recorded and does not move the score.
    """

    def __init__(
        self, engine: HiddenStates, comparisons: Sequence[Comparison], layer: float, l2: float
    ) -> None:
        """Fit on `comparisons`. Raises UsageError if there are fewer than `MIN_COMPARISONS`."""
        if len(comparisons) < MIN_COMPARISONS:
            raise UsageError(
                f"the linear probe needs at least {MIN_COMPARISONS} comparisons, the constitution has "
                f"{len(comparisons)} for this purpose. Write more under demonstrations.comparisons, "
                "or set judge.kind=choice."
            )
        self._engine = engine
        self._layer = layer
        self._l2 = l2
        self._prompts = [c.prompt for c in comparisons]
        self._better, self._worse = comparison_features(engine, comparisons, layer)
        self._readout = fit(self._better, self._worse, l2)

    @property
    def name(self) -> str:
        return "linear_probe"

    def cross_validate(self, folds: int, seed: int) -> list[bool]:
        """Whether each comparison is read rightly by a readout fitted on the other folds.

        Folds go by prompt, so that two comparisons of one prompt are never on both sides.
        """
        fold_of = np.array([seed_from(seed, prompt) % folds for prompt in self._prompts])
        correct = np.zeros(len(fold_of), dtype=bool)
        for fold in range(folds):
            test = fold_of == fold
            if test.any() and not test.all():
                readout = fit(self._better[~test], self._worse[~test], self._l2)
                correct[test] = readout.score(self._better[test]) > readout.score(self._worse[test])
        return [bool(c) for c in correct]

    def scores(self, answers: Sequence[tuple[str, str]]) -> list[float]:
        """The readout of each (prompt, answer), in logits; equal pairs are read once."""
        unique = list(dict.fromkeys(answers))
        features = features_of(self._engine, unique, self._layer)
        known = dict(zip(unique, self._readout.score(features).tolist(), strict=True))
        return [known[pair] for pair in answers]

    def compare(self, questions: Sequence[Question]) -> list[Judgement]:
        asked = [q for q in questions if unanswerable(q) is None]
        pairs = [(q.prompt, answer) for q in asked for answer in (q.a, q.b)]
        scores = self.scores(pairs) if pairs else []
        known = {q: Judgement(sigmoid(scores[2 * i] - scores[2 * i + 1])) for i, q in enumerate(asked)}
        return [known.get(q) or Judgement(None, unanswerable(q)) for q in questions]


def features_of(engine: HiddenStates, answers: Sequence[tuple[str, str]], layer: float) -> Array:
    """Mean hidden states of (prompt, answer) pairs, [n, width]."""
    return engine.hidden_means([ScoreRequest(user(prompt), answer) for prompt, answer in answers], layer)


def comparison_features(
    engine: HiddenStates, comparisons: Sequence[Comparison], layer: float
) -> tuple[Array, Array]:
    """Features of the better and of the worse answers, [n, width] each."""
    better = [(c.prompt, c.better) for c in comparisons]
    worse = [(c.prompt, c.worse) for c in comparisons]
    both = features_of(engine, better + worse, layer)
    return both[: len(comparisons)], both[len(comparisons) :]
