"""The next token: exact distributions, by numbers worked out by hand and by counting."""

import pytest
import torch

from solon.engines.sampling import Chooser, draw, uniforms
from solon.settings import Sampling

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def chosen(u: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
    ids, _ = draw(LOGITS, Sampling(temperature=temperature, top_p=top_p), torch.tensor([u]))
    return int(ids)


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.96, 3), (1.0, 3)]
)
def test_inverse_cdf(u: float, token: int) -> None:
    assert chosen(u) == token


@pytest.mark.parametrize(
    ("top_p", "u", "token"),
    # 0.7 keeps {0.5, 0.3}: the boundary is 0.5 / 0.8. 0.4 keeps the first alone. 0.9 keeps three.
    [(0.7, 0.62, 0), (0.7, 0.63, 1), (0.7, 1.0, 1), (0.4, 1.0, 0), (0.9, 0.99, 2)],
)
def test_nucleus(top_p: float, u: float, token: int) -> None:
    assert chosen(u, top_p=top_p) == token


def test_temperature_sharpens() -> None:
    # At temperature 0.5 the probabilities are squares: 0.25 / 0.365 = 0.685.
    assert chosen(0.68, temperature=0.5) == 0
    assert chosen(0.69, temperature=0.5) == 1


def test_top_p_is_exact_where_the_nucleus_is_wider_than_the_shortcut() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 0.5  # nearly flat: a nucleus of 0.9 holds about 900 tokens
    drawn = draw(logits.expand(500, -1).clone(), Sampling(top_p=0.9), torch.linspace(0, 0.999, 500))[0]
    assert len(set(drawn.tolist())) > 400


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(1)
    flat, peaked = torch.zeros(1, 900), 6 * torch.randn(1, 900)
    both, u = torch.cat([flat, peaked]), torch.tensor([0.3, 0.6])
    settings = Sampling(top_p=0.95)
    together = draw(both, settings, u)[0].tolist()
    alone = [int(draw(row.unsqueeze(0), settings, u[i : i + 1])[0]) for i, row in enumerate(both)]
    assert together == alone


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_match_the_distribution(top_p: float) -> None:
    n = 20_000
    u = uniforms([3], n)[0]
    ids = draw(LOGITS.expand(n, -1), Sampling(top_p=top_p), u)[0]
    kept = torch.tensor([0.5, 0.3, 0.15, 0.05]) if top_p == 1 else torch.tensor([0.625, 0.375, 0, 0])
    torch.testing.assert_close(torch.bincount(ids, minlength=4) / n, kept, atol=0.015, rtol=0)


def test_uniforms_are_a_row_to_a_seed_and_a_short_row_starts_a_long_one() -> None:
    both = uniforms([5, 2**62 + 1], 100)
    assert torch.equal(both[1:], uniforms([2**62 + 1], 100))
    assert torch.equal(both[:, :17], uniforms([5, 2**62 + 1], 17))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_noticed(temperature: float) -> None:
    chooser = Chooser(Sampling(temperature=temperature), [0, 1], torch.device("cpu"))
    rows, logits = torch.arange(2), torch.zeros(2, 10)
    chooser(logits.clone(), rows, 0)
    assert not chooser.broken
    logits[1] = torch.nan
    chooser(logits, rows, 1)
    assert chooser.broken
