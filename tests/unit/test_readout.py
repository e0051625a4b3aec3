"""Readouts fitted by the kernel and by the features: the same directions, whichever is smaller."""

import numpy as np
import pytest

from solon.feedback import readout
from solon.feedback.readout import Array, Readout, fit_path


def _fitted(n: int, groups: int, seed: int) -> list[Readout]:
    rng = np.random.default_rng(seed)
    better, worse = rng.normal(size=(2, n, 4))
    better[:, 0] += 1.0
    shares = rng.normal(size=(n, groups))
    return fit_path(better, worse, [0.1, 10.0], shares, rng.uniform(size=n))


@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("n", [3, 40])
def test_both_ways_find_the_same_directions(n: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_kernel(d_nD: Array, shares_nG: Array) -> readout._Spectrum:
        values_r, vectors_nr = readout._eigen((d_nD @ d_nD.T) * (1.0 + shares_nG @ shares_nG.T))
        return readout._Spectrum(vectors_nr, np.sqrt(values_r))

    found = _fitted(n, groups, n)
    monkeypatch.setattr(readout, "_spectrum", by_kernel)
    for ours, expected in zip(found, _fitted(n, groups, n), strict=True):
        np.testing.assert_allclose(ours.overall_D, expected.overall_D, atol=1e-8)
        np.testing.assert_allclose(ours.strays_GD, expected.strays_GD, atol=1e-8)


def test_a_feature_that_is_always_the_same_is_no_direction() -> None:
    """Twenty pairs of two features, of which one never differs: the products have an eigenvalue of 0."""
    rng = np.random.default_rng(0)
    better, worse = rng.normal(size=(2, 20, 2))
    better[:, 1] = worse[:, 1] = 3.0
    [fitted] = fit_path(better, worse, [1.0])
    assert fitted.overall_D[1] == pytest.approx(0.0, abs=1e-12)
    assert np.isfinite(fitted.overall_D).all()
