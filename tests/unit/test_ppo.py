"""PPO on a tiny model: rows in their order, a first ratio of 1, and a policy that learns what is rewarded."""

from pathlib import Path

import pytest
import torch

from solon.engines.base import GenerateRequest, user
from solon.engines.local import LocalEngine
from solon.models import load_model, load_tokenizer, resolve
from solon.recipe import Lora, Reinforce
from solon.settings import Sampling
from solon.training.adapters import add_adapter, trainable
from solon.training.batching import minibatches
from solon.training.encoding import Encoded
from solon.training.policy import Policy
from solon.training.ppo import evaluate, improve, minibatch_loss, pad_tokens

EPISODES = [
    Encoded((5, 6, 7), (8, 9)),
    Encoded((5,), (10, 11, 12, 2)),
    Encoded((6, 7, 8, 9), (13,)),
    Encoded((9, 8), (14, 15, 16)),
]
PLAN = [[2, 0], [3, 1]]


@pytest.fixture
def policy(tiny_model_folder: Path) -> Policy:
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    return Policy(add_adapter(model, Lora(rank=4, alpha=8), seed=0), temperature=0.8).eval()


def _settings(**changes: object) -> Reinforce:
    return Reinforce.model_validate({"episodes": 4, "minibatch": 2, **changes})


def test_pad_tokens_by_hand() -> None:
    padded = pad_tokens(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2]))
    assert padded.tolist() == [[1.0, 0.0], [2.0, 3.0]]


def test_logprobs_equal_a_plain_forward_at_the_sampling_temperature(policy: Policy) -> None:
    reading = policy([EPISODES[1]])
    with torch.no_grad():
        logits = policy.causal_model()(input_ids=torch.tensor([EPISODES[1].ids])).logits[0].float()
    plain = torch.log_softmax(logits / 0.8, -1)
    # The token at position t is predicted by the logits at t - 1; the prompt is one token long.
    expected = torch.stack([plain[t, token] for t, token in enumerate(EPISODES[1].answer)])
    torch.testing.assert_close(reading.logp_N, expected, atol=1e-5, rtol=1e-5)


def test_rollout_keeps_the_order_of_the_episodes(policy: Policy) -> None:
    rollout = evaluate(policy, EPISODES, [False, True, False, False], torch.zeros(4), _settings(), PLAN)
    for i, episode in enumerate(EPISODES):
        alone = policy([episode]).logp_N.detach()
        row = rollout.logp_BT[i, : len(episode.answer)]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
    assert rollout.mask_BT.sum(1).tolist() == [2, 4, 1, 3]


def test_a_fresh_adapter_is_its_own_reference(policy: Policy) -> None:
    rollout = evaluate(policy, EPISODES, [True] * 4, torch.zeros(4), _settings(), PLAN)
    torch.testing.assert_close(rollout.kl_B, torch.zeros(4), atol=1e-6, rtol=0)
    assert rollout.value_BT.abs().max() == 0, "the value head starts at zero"


def test_missing_end_costs(policy: Policy) -> None:
    scores = torch.tensor([0.5, 0.6, 0.7, 0.8])
    ended = [True, False, True, False]
    rollout = evaluate(policy, EPISODES, ended, scores, _settings(missing_end_score=-1.0), PLAN)
    torch.testing.assert_close(rollout.score_B, torch.tensor([0.5, -1.0, 0.7, -1.0]))
    kept = evaluate(policy, EPISODES, ended, scores, _settings(missing_end_score=None), PLAN)
    torch.testing.assert_close(kept.score_B, scores)


def test_first_minibatch_has_ratio_one_and_the_loss_of_its_advantages(policy: Policy) -> None:
    """At ratio 1 the surrogate is -mean(A) over the tokens; the value loss is 1/2 mean(return^2) at V = 0."""
    settings = _settings(value_coefficient=0.5)
    rollout = evaluate(policy, EPISODES, [True] * 4, torch.zeros(4), settings, PLAN)
    advantage = torch.arange(16.0).reshape(4, 4) * rollout.mask_BT
    returns = torch.full((4, 4), 0.1)
    loss, metrics = minibatch_loss(policy, rollout, advantage, returns, [0, 1], settings)
    # Row 0 has tokens 0 and 1 (A = 0, 1), row 1 has tokens 0 to 3 (A = 4, 5, 6, 7): -23/6.
    assert metrics["policy_loss"] == pytest.approx(-23 / 6, abs=1e-4)
    assert metrics["value_loss"] == pytest.approx(0.5 * 0.1**2, abs=1e-6)
    assert metrics["ratio_error"] < 1e-5
    assert float(loss.detach()) == pytest.approx(-23 / 6 + 0.5 * 0.005, abs=1e-4)


def test_the_policy_learns_what_is_rewarded(tiny_model_folder: Path, policy: Policy) -> None:
    """Reward 1 for an odd first token: its share rises from about a fifth to most."""
    settings = _settings(episodes=32, minibatch=16, epochs=2, beta=0.0, missing_end_score=None)
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    engine = LocalEngine(policy.causal_model(), tokenizer, "policy")
    optimiser = torch.optim.AdamW(trainable(policy).values(), lr=3e-3, eps=1e-5, weight_decay=0.0)
    sampling = Sampling(max_tokens=2, temperature=0.8)
    shares = []
    for step in range(25):
        requests = [GenerateRequest(user("go"), sampling, 1000 * step + i) for i in range(32)]
        completions = engine.generate(requests)
        prompt = tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "go"}], add_generation_prompt=True, return_dict=False
            )
        )
        episodes = [Encoded(prompt, c.token_ids) for c in completions]
        scores = torch.tensor([float(c.token_ids[0] % 2 == 1) for c in completions])
        shares.append(float(scores.mean()))
        generator = torch.Generator().manual_seed(step)
        plan = [minibatches(32, 16, generator) for _ in range(settings.epochs)]
        rollout = evaluate(policy, episodes, [True] * 32, scores, settings, plan[0])
        metrics = improve(policy, optimiser, rollout, settings, 0.0, plan)
        assert metrics["ratio_error"] < 1e-5
    assert shares[0] < 0.4
    assert sum(shares[-3:]) / 3 > 0.8, shares
