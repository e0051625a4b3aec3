"""Logistic readouts of features that compare answers, fitted on pairs of which the first is better.

Pure functions on numbers. Names carry shapes: n pairs, D features, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_NEWTON_STEPS = 50
_SMALL = 1e-7  # Of a step: Newton's next one would be about its square


@dataclass(frozen=True)
class Readout:
    """Directions in standardised feature space; an answer's score is its projection, in logits.

    `overall_D` is what all pairs have in common, `strays_GD` how each group's direction strays from it.
    """

    overall_D: Array
    strays_GD: Array
    mean_D: Array
    scale_D: Array

    def score(self, features_nD: Array, shares_nG: Array | None = None) -> Array:
        """[n] from features [n, D] and how far each answer's question is of each group, as in `fit`.

        A difference of two scores is the log-odds of the first answer.
        """
        standard_nD = (features_nD - self.mean_D) / self.scale_D
        weights_nD = self.overall_D if shares_nG is None else self.overall_D + shares_nG @ self.strays_GD
        return np.asarray((standard_nD * weights_nD).sum(1), dtype=np.float64)


def fit(
    better_nD: Array,
    worse_nD: Array,
    l2: float,
    shares_nG: Array | None = None,
    p_n: Array | None = None,
) -> Readout:
    """Logistic regression on pair differences without intercept: directions of groups around a common one.

    Minimises sum_i log(1 + exp(-(w + s_i V)·d_i)) + l2/2 (|w|^2 + |V|^2), d_i the standardised difference of
    pair i: Bradley and Terry (1952) with linear strengths; the split into w and V is Evgeniou and Pontil
    (2004), sec. 2. The problem is convex, and its optimum lies in the span of the differences, so Newton's
    method runs in n dimensions, or in those of the features if they are fewer.

    Args:
        shares_nG: s_i, how far pair i is of each group; the square of a share is how cheaply the group's
            direction may stray. None: one direction for all.
        p_n: the first answer of pair i is better with that probability only, and the loss is the
            cross-entropy. None: certainly.
    """
    return fit_path(better_nD, worse_nD, [l2], shares_nG, p_n)[0]


def fit_path(
    better_nD: Array,
    worse_nD: Array,
    l2: Sequence[float],
    shares_nG: Array | None = None,
    p_n: Array | None = None,
) -> list[Readout]:
    """As `fit`, for several penalties; what does not depend on them is computed once."""
    both = np.concatenate([better_nD, worse_nD])
    mean_D, scale_D = both.mean(0), both.std(0) + 1e-6
    d_nD = (better_nD - worse_nD) / scale_D
    shares_nG = np.zeros((len(d_nD), 0)) if shares_nG is None else shares_nG
    alphas = _dual(_spectrum(d_nD, shares_nG), l2, np.ones(len(d_nD)) if p_n is None else p_n)
    return [
        Readout(alpha_n @ d_nD, (shares_nG * alpha_n[:, None]).T @ d_nD, mean_D, scale_D)
        for alpha_n in alphas
    ]


def classify_path(x_nD: Array, l2: Sequence[float], p_n: Array) -> list[tuple[Array, float]]:
    """Logistic regression of p_n on features with an intercept, for several penalties: weight [D] and bias.

    A point and its mirror image about the mean make a pair, and a constant feature gives the intercept; it is
    penalised as the others are.
    """
    mean_D, scale_D = x_nD.mean(0), x_nD.std(0) + 1e-6
    centred_nD = np.column_stack([(x_nD - mean_D) / scale_D, np.ones(len(x_nD))]) / 2
    fitted = fit_path(centred_nD, -centred_nD, l2, p_n=p_n)
    weights = [readout.overall_D / readout.scale_D for readout in fitted]
    return [(w[:-1] / scale_D, float(w[-1] - mean_D @ (w[:-1] / scale_D))) for w in weights]


@dataclass(frozen=True)
class _Spectrum:
    """The kernel (d_i . d_j) (1 + s_i . s_j) [n, n] as vectors_nr diag(root_r^2) vectors_nr^T."""

    vectors_nr: Array
    root_r: Array


def _spectrum(d_nD: Array, shares_nG: Array) -> _Spectrum:
    """By whichever is smaller: the kernel, or the products [E, E] of the features (d, s_1 d, ..., s_G d).

    The work grows with the third power of the side.
    """
    n, width = len(d_nD), d_nD.shape[1] * (1 + shares_nG.shape[1])
    if width >= n:
        values_r, vectors_nr = _eigen((d_nD @ d_nD.T) * (1.0 + shares_nG @ shares_nG.T))
        return _Spectrum(vectors_nr, np.sqrt(values_r))
    x_nE = np.concatenate([d_nD, *(share_n[:, None] * d_nD for share_n in shares_nG.T)], 1)
    values_r, vectors_Er = _eigen(x_nE.T @ x_nE)
    return _Spectrum(x_nE @ vectors_Er / np.sqrt(values_r), np.sqrt(values_r))


def _eigen(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues and vectors, without those that are 0 but for rounding."""
    values_r, vectors = np.linalg.eigh(symmetric)
    kept = values_r > values_r.max(initial=0.0) * 1e-10
    return values_r[kept], vectors[:, kept]


def _dual(spectrum: _Spectrum, l2: Sequence[float], p_n: Array) -> list[Array]:
    """Weights [n] of the pairs for each penalty: the optimum is the sum of their differences so weighted."""
    z_nr, b_r = spectrum.vectors_nr * spectrum.root_r, np.zeros(len(spectrum.root_r))
    found: dict[float, Array] = {}
    for penalty in sorted(l2, reverse=True):  # Each starts from the one before, which is not far
        b_r = _newton(z_nr, penalty, p_n, b_r)
        found[penalty] = np.asarray(spectrum.vectors_nr @ (b_r / spectrum.root_r), dtype=np.float64)
    return [found[penalty] for penalty in l2]


def _newton(z_nr: Array, l2: float, p_n: Array, b_r: Array) -> Array:
    """The minimum, sought from `b_r` on, of the cross-entropy of sigmoid(z b) to p, plus l2/2 |b|^2.

    Steps are halved until the loss does not rise.
    """
    for _ in range(_NEWTON_STEPS):
        said_n = _sigmoid(z_nr @ b_r)
        gradient_r = l2 * b_r - z_nr.T @ (p_n - said_n)
        hessian_rr = (z_nr.T * (said_n * (1 - said_n))) @ z_nr + l2 * np.eye(len(b_r))
        step_r = np.linalg.solve(hessian_rr, gradient_r)
        size = 1.0
        while size > 1e-8 and _loss(z_nr, b_r - size * step_r, l2, p_n) > _loss(z_nr, b_r, l2, p_n):
            size /= 2
        b_r = b_r - size * step_r
        if float(np.abs(step_r).max(initial=0.0)) < _SMALL:
            break
    return b_r


def _loss(z_nr: Array, b_r: Array, l2: float, p_n: Array) -> float:
    return cross_entropy(z_nr @ b_r, p_n) + float(l2 / 2 * (b_r @ b_r))


def cross_entropy(logits_n: Array, p_n: Array) -> float:
    """Of sigmoid(logits) to the probabilities, summed, in nats."""
    return float((np.logaddexp(0.0, logits_n) - p_n * logits_n).sum())


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2)), dtype=np.float64)
