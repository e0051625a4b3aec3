"""Logistic readouts of features that compare answers, fitted on pairs with a known better one.

Pure functions on numbers. Names carry shapes: n pairs, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Readout:
    """Directions in standardised feature space; an answer's score is its projection, in logits.

    `overall_D` is what all groups (principles) have in common, `of_group` the whole direction of each.
    """

    overall_D: Array
    of_group: Mapping[str, Array]
    mean_D: Array
    scale_D: Array

    def score(self, features_nD: Array, groups: Sequence[str]) -> Array:
        """[n] from features [n, D] and their groups; an unknown group is read by the overall direction.

        A difference of two scores is the log-odds of the first answer.
        """
        standard_nD = (features_nD - self.mean_D) / self.scale_D
        weights_nD = np.stack([self.of_group.get(group, self.overall_D) for group in groups])
        return np.asarray((standard_nD * weights_nD).sum(1), dtype=np.float64)


def fit(better_nD: Array, worse_nD: Array, groups: Sequence[str], l2: float, own: float = 0.0) -> Readout:
    """Logistic regression on pair differences without intercept, a direction a group around a common one.

    Minimises sum_i log(1 + exp(-(w + v_g(i))·d_i)) + l2/2 (|w|^2 + sum_g |v_g|^2 / own), d_i the standardised
    difference of pair i: Bradley and Terry (1952) with linear strengths; the split into w and v_g is Evgeniou
    and Pontil (2004), sec. 2. `own` = 0 gives all groups one direction. The problem is convex, and its
    optimum lies in the span of the differences, so Newton's method runs in n dimensions.
    """
    both = np.concatenate([better_nD, worse_nD])
    mean_D, scale_D = both.mean(0), both.std(0) + 1e-6
    d_nD = (better_nD - worse_nD) / scale_D
    names = np.array(groups)
    kernel_nn = (d_nD @ d_nD.T) * (1.0 + own * (names[:, None] == names[None, :]))
    alpha_n = _dual(kernel_nn, l2)
    overall_D = alpha_n @ d_nD
    of_group = {
        str(name): overall_D + own * (alpha_n[names == name] @ d_nD[names == name])
        for name in (sorted(set(groups)) if own else ())
    }
    return Readout(overall_D, of_group, mean_D, scale_D)


def _dual(kernel_nn: Array, l2: float) -> Array:
    """Weights [n] of the pairs: the optimum is the sum of their differences so weighted."""
    values_r, vectors_nr = np.linalg.eigh(kernel_nn)
    kept = values_r > values_r.max(initial=0.0) * 1e-10
    root_r = np.sqrt(values_r[kept])
    b_r = _newton(vectors_nr[:, kept] * root_r, l2)
    return np.asarray(vectors_nr[:, kept] @ (b_r / root_r), dtype=np.float64)


def _newton(z_nr: Array, l2: float) -> Array:
    """The minimum of sum softplus(-z b) + l2/2 |b|^2, with steps halved until the loss does not rise."""
    b_r = np.zeros(z_nr.shape[1])
    for _ in range(_NEWTON_STEPS):
        p_n = _sigmoid(z_nr @ b_r)
        gradient_r = l2 * b_r - z_nr.T @ (1 - p_n)
        hessian_rr = (z_nr.T * (p_n * (1 - p_n))) @ z_nr + l2 * np.eye(len(b_r))
        step_r = np.linalg.solve(hessian_rr, gradient_r)
        size = 1.0
        while size > 1e-8 and _loss(z_nr, b_r - size * step_r, l2) > _loss(z_nr, b_r, l2):
            size /= 2
        b_r = b_r - size * step_r
        if float(np.abs(step_r).max(initial=0.0)) < 1e-9:
            break
    return b_r


def _loss(z_nr: Array, b_r: Array, l2: float) -> float:
    return float(np.logaddexp(0.0, -(z_nr @ b_r)).sum() + l2 / 2 * (b_r @ b_r))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2)), dtype=np.float64)
