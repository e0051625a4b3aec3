"""Where a reward model's head starts: fitted on the trunk's states before any adapter is trained.

From a random head the first steps are spent on unlearning it, and pull the adapters along; a few hundred
pairs end before that is over. A head that is fitted first leaves to the adapters what it cannot say (Kumar et
al. 2022, arXiv 2202.10054: linear probing, then fine-tuning).

A gated head has a second direction, which counts as far as the prompt is of one kind or the other: "refuse
this, answer that" is no one direction in an answer's states. A gate that reads the prompt and mixes linear
rewards is Wang et al. 2024 (arXiv 2406.12845, sec. 3.2); theirs mixes objectives that people rated.

Pure functions on numbers. Names carry shapes: n pairs, D features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solon.digest import seed_from
from solon.feedback.readout import Array, classify_path, cross_entropy, fit, fit_path

PAIRS = 2048  # More change such a head little; the fit takes their number cubed.
SWAY = 2.0  # Its square is how cheaply the second direction grows beside the common one
_FOLDS = 5
_L2 = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


@dataclass(frozen=True)
class Linear:
    """weight·features + bias."""

    weight_D: Array
    bias: float

    def __call__(self, x_nD: Array) -> Array:
        return np.asarray(x_nD @ self.weight_D + self.bias, dtype=np.float64)


@dataclass(frozen=True)
class Head:
    """A difference of two scores is the log-odds of the first: score = common + gate * by_kind.

    `by_kind` is None for a head without a gate.
    """

    common: Linear
    by_kind: Linear | None
    l2: float


@dataclass(frozen=True)
class Classified:
    """A classifier of all rows, and what it says of each row [n] when fitted on the other folds.

    `loss` is the cross-entropy of the latter, summed, in nats.
    """

    readout: Linear
    unseen_n: Array
    loss: float


def fit_head(
    a_nD: Array, b_nD: Array, p_n: Array, prompts: Sequence[str], gates_n: Array | None = None
) -> Head:
    """Logistic regression on soft labels, its strength chosen by cross-validation over the prompts.

    Args:
        p_n: the probability that the first of each pair is preferred.
        prompts: each pair's prompt id; pairs of one prompt are in one fold.
        gates_n: the gate of each pair's prompt, -1 to 1: how far the second direction counts, and which way.
    """
    shares_nG = np.zeros((len(p_n), 0)) if gates_n is None else SWAY * gates_n[:, None]

    def losses(test_n: NDArray[np.bool_]) -> Array:
        train_n = ~test_n
        fitted = fit_path(a_nD[train_n], b_nD[train_n], _L2, shares_nG[train_n], p_n[train_n])
        return np.array(
            [
                cross_entropy(
                    readout.score(a_nD[test_n], shares_nG[test_n])
                    - readout.score(b_nD[test_n], shares_nG[test_n]),
                    p_n[test_n],
                )
                for readout in fitted
            ]
        )

    l2 = _best(prompts, losses)
    readout = fit(a_nD, b_nD, l2, shares_nG, p_n)
    linear = [
        Linear(w_D, -float(readout.mean_D @ w_D))
        for w_D in (readout.overall_D / readout.scale_D, *(SWAY * readout.strays_GD / readout.scale_D))
    ]
    return Head(linear[0], linear[1] if len(linear) > 1 else None, l2)


def fit_gate(
    prompts_nD: Array, red_team_n: NDArray[np.bool_], prompts: Sequence[str]
) -> tuple[Linear, Array]:
    """The log-odds that a prompt is a red-team prompt, from its hidden state; chosen as `fit_head`.

    Returns:
        The gate, and what it says of each prompt [n] when it has not seen it: fitted on the other folds. A
        head that is fitted on this learns how sure a gate is of prompts that are new.
        Where all prompts are of one kind there is nothing to tell apart: 0 for every prompt.
    """
    if red_team_n.all() or not red_team_n.any():
        return Linear(np.zeros(prompts_nD.shape[1]), 0.0), np.zeros(len(prompts))
    found = fit_classifier(prompts_nD, red_team_n.astype(np.float64), prompts)
    return found.readout, found.unseen_n


def fit_classifier(x_nD: Array, p_n: Array, prompts: Sequence[str]) -> Classified:
    """Logistic regression with an intercept on soft labels p_n, chosen as `fit_head`."""

    def losses(test_n: NDArray[np.bool_]) -> Array:
        fitted = classify_path(x_nD[~test_n], _L2, p_n[~test_n])
        return np.array([cross_entropy(x_nD[test_n] @ w + bias, p_n[test_n]) for w, bias in fitted])

    l2 = _best(prompts, losses)
    unseen_n = np.zeros(len(prompts))
    for test_n in fold_tests(prompts, "head"):
        [(weight_D, bias)] = classify_path(x_nD[~test_n], [l2], p_n[~test_n])
        unseen_n[test_n] = x_nD[test_n] @ weight_D + bias
    [(weight_D, bias)] = classify_path(x_nD, [l2], p_n)
    return Classified(Linear(weight_D, bias), unseen_n, cross_entropy(unseen_n, p_n))


def _best(prompts: Sequence[str], losses: Callable[[NDArray[np.bool_]], Array]) -> float:
    """The penalty with the least loss over the folds; `losses` has each one's on the rows it is told.

    The strongest where all rows are in one fold, and none would be left to fit on.
    """
    found = [losses(test_n) for test_n in fold_tests(prompts, "head")]
    return _L2[int(np.argmin(np.sum(found, axis=0)))] if found else _L2[-1]


def fold_tests(prompts: Sequence[str], draw: str) -> list[NDArray[np.bool_]]:
    """Which rows each fold of a `draw` tests, others being left; rows of one prompt are in one fold."""
    folds_n = np.array([seed_from(draw, prompt) % _FOLDS for prompt in prompts])
    folds = np.unique(folds_n)
    return [folds_n == fold for fold in folds] if len(folds) > 1 else []
