"""Where a reward model's head starts: fitted on the trunk's states before any adapter is trained.

From a random head the first steps are spent on unlearning it, and pull the adapters along; a few hundred
pairs end before that is over. A head that is fitted first leaves to the adapters what it cannot say (Kumar et
al. 2022, arXiv 2202.10054: linear probing, then fine-tuning).

Pure functions on numbers. Names carry shapes: n pairs, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solon.digest import seed_from
from solon.feedback.readout import Array, cross_entropy, fit, fit_path

PAIRS = 2048  # More change such a head little; the fit takes their number cubed.
_FOLDS = 5
_L2 = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


@dataclass(frozen=True)
class Head:
    """A score is weight·features + bias; a difference of two scores is the log-odds of the first."""

    weight_D: Array
    bias: float
    l2: float


def fit_head(a_nD: Array, b_nD: Array, p_n: Array, prompts: Sequence[str]) -> Head:
    """Logistic regression on soft labels, its strength chosen by cross-validation over the prompts.

    Args:
        p_n: the probability that the first of each pair is preferred.
        prompts: each pair's prompt id; pairs of one prompt are in one fold.
    """
    folds_n = np.array([seed_from("head", prompt) % _FOLDS for prompt in prompts])
    losses = sum(_losses(a_nD, b_nD, p_n, folds_n == fold) for fold in np.unique(folds_n))
    l2 = _L2[int(np.argmin(losses))]
    readout = fit(a_nD, b_nD, l2, p_n=p_n)
    weight_D = readout.overall_D / readout.scale_D
    return Head(weight_D, -float(readout.mean_D @ weight_D), l2)


def _losses(a_nD: Array, b_nD: Array, p_n: Array, test_n: NDArray[np.bool_]) -> Array:
    """Of each penalty: the cross-entropy of the tested pairs, read by a head fitted on the others."""
    fitted = fit_path(a_nD[~test_n], b_nD[~test_n], _L2, p_n=p_n[~test_n])
    logits = (readout.score(a_nD[test_n]) - readout.score(b_nD[test_n]) for readout in fitted)
    return np.array([cross_entropy(logits_n, p_n[test_n]) for logits_n in logits])
