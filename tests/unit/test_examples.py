"""PPO in one file does what Solon does, learns, and has the shapes that the documentation shows."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon.training import advantages, losses
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "ppo_from_scratch.py"


EXAMPLE = load(FILE)


@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 2**31))
def test_its_formulas_are_those_of_solon(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths_B, longest = torch.tensor(lengths), max(lengths)
    mask_BT = torch.arange(longest) < lengths_B.unsqueeze(-1)
    new, old, reference, value = (
        torch.randn(len(lengths), longest, generator=generator) * mask_BT for _ in range(4)
    )
    score_B = torch.randn(len(lengths), generator=generator)
    beta, gamma, lam = EXAMPLE.BETA, EXAMPLE.GAMMA, EXAMPLE.LAM
    theirs = EXAMPLE.token_rewards(old, reference, score_B, lengths_B)
    torch.testing.assert_close(theirs, advantages.token_rewards(old, reference, score_B, lengths_B, beta))
    advantage, returns = advantages.gae(theirs, value, lengths_B, gamma, lam)
    torch.testing.assert_close(EXAMPLE.gae(theirs, value, mask_BT), advantage)
    if len(lengths) * longest > 2 and float(advantage[mask_BT].std()) > 1e-3:
        white = advantages.whiten(advantage, mask_BT)
        torch.testing.assert_close(EXAMPLE.whiten(advantage, mask_BT), white, atol=1e-4, rtol=1e-4)
    loss, _ = losses.policy_loss(new, old, advantage, mask_BT, EXAMPLE.CLIP)
    torch.testing.assert_close(EXAMPLE.policy_loss(new, old, advantage, mask_BT), loss)
    fit = losses.value_loss(new, value, returns, mask_BT, EXAMPLE.VALUE_CLIP)
    torch.testing.assert_close(EXAMPLE.value_loss(new, value, returns, mask_BT), fit)


def test_it_learns() -> None:
    scores = EXAMPLE.train(25)
    assert scores[0] < 0.6
    assert sum(scores[-5:]) / 5 > 0.9


def test_the_documentation_shows_its_shapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(FILE), "--shapes"])
    EXAMPLE.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("step")]
    assert len(lines) == 10
    assert "\n".join(lines) in (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
