"""A PPO step: against hand-computed values, a naive second implementation, and known optima."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from solon.errors import RunError
from solon.recipe import Recipe
from solon.records import Prompt
from solon.stages.prompting import StepSampler
from solon.training.adapters import trainable, using
from solon.training.optimiser import PPO_EPSILON, Optimiser
from solon.training.policy import Actors, Policy
from solon.training.ppo import (
    Targets,
    centred,
    check_first_ratio,
    describe,
    improve,
    left_out,
    micro_loss,
    targets,
)
from solon.training.ppo_trainer import PPOTrainer
from solon.training.ranks import Ranks
from solon.training.rollout import Episode, Rollout, evaluate, own_episodes, pad_tokens, plan_epochs, shaped
from solon.training_settings import Reinforce
from tests.ppo_setup import EPISODES, PLAN, Asker, actors, odd_shares, settings, stir

ALONE = Ranks()
SCORES = torch.tensor([0.5, -0.25, 1.0, 0.0])


@pytest.fixture
def made(tiny_model_folder: Path, tmp_path: Path) -> Actors:
    return actors(tiny_model_folder, tmp_path)


def _rollout(policy: Policy) -> Rollout:
    return evaluate(policy, EPISODES, SCORES, PLAN[0])


def _aims(rollout: Rollout, wanted: Reinforce, beta: float = 0.1) -> Targets:
    return targets(rollout, wanted, beta, ALONE)


def _optimiser(policy: Policy, rate: float = 1e-3) -> Optimiser:
    return Optimiser(trainable(policy), rate, PPO_EPSILON)


def test_pad_tokens_by_hand() -> None:
    padded = pad_tokens(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2]))
    assert padded.tolist() == [[1.0, 0.0], [2.0, 3.0]]


def test_rollout_keeps_the_order_of_the_episodes(made: Actors) -> None:
    rollout = _rollout(made.policy)
    for i, episode in enumerate(EPISODES):
        alone = made.policy([episode]).logp_N.detach()
        row = rollout.logp_BT[i, : len(episode.answer)]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
    assert rollout.mask_BT.sum(1).tolist() == [2, 4, 1, 3]


def test_a_fresh_adapter_is_its_own_reference(made: Actors) -> None:
    rollout = _rollout(made.policy)
    torch.testing.assert_close(rollout.kl_B, torch.zeros(4), atol=1e-6, rtol=0)
    assert rollout.value_BT.abs().max() == 0, "the value head starts at zero"


def test_scores_are_clipped_and_a_missing_end_costs() -> None:
    found = shaped(torch.tensor([0.5, 6.0, -7.0, 0.8]), EPISODES, settings(score_clip=5.0))
    torch.testing.assert_close(found, torch.tensor([-1.0, 5.0, -1.0, -1.0]))
    kept = shaped(torch.tensor([0.5, 6.0, -7.0, 0.8]), EPISODES, settings(missing_end_score=None))
    torch.testing.assert_close(kept, torch.tensor([0.5, 6.0, -7.0, 0.8]))


def test_a_refusal_costs_where_nothing_was_to_be_refused() -> None:
    refused = [
        replace(episode, refused=True) for episode in EPISODES[:2]
    ]  # A red-team prompt's, a helpful one's
    wanted = settings(missing_end_score=None, over_refusal=0.75)
    found = shaped(torch.tensor([0.5, 0.5, 0.5, 0.5]), [*refused, *EPISODES[2:]], wanted)
    torch.testing.assert_close(found, torch.tensor([0.5, -0.25, 0.5, 0.5]))


def test_an_episode_is_told_by_its_text() -> None:
    refusal = Episode.of((1,), (2,), True, "helpful", "I'm sorry, but I can't help with that.")
    loop = Episode.of(
        (1,), (2,), False, "helpful", "so and so and so and so and so and so and so and so and so on"
    )
    assert (refusal.refused, refusal.degenerate) == (True, False)
    assert (loop.refused, loop.degenerate) == (False, True)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (torch.tensor([0.0, math.nan, 0.0, math.inf]), "2 values that are no numbers for 4 episodes"),
        (torch.zeros(3), "3 scores for 4 episodes"),
        (torch.zeros(4, 1), "a tensor of shape [4, 1]"),
    ],
)
def test_a_faulty_reward_is_told(scores: Tensor, said: str) -> None:
    with pytest.raises(RunError, match="the stage then starts again") as caught:
        shaped(scores, EPISODES, settings())
    assert said in str(caught.value)


def test_no_episode_left_is_told() -> None:
    with pytest.raises(RunError, match="no episode left"):
        shaped(torch.zeros(0), [], settings())


def test_a_plan_deals_every_episode_once_an_epoch_in_small_enough_parts() -> None:
    wanted = settings(episodes=7, minibatch=3, epochs=3, batch_tokens=64)
    episodes = [replace(EPISODES[0], answer=tuple(range(k + 1))) for k in range(7)]
    plan = plan_epochs(episodes, wanted, torch.Generator().manual_seed(0), ALONE)
    assert len(plan) == 3
    for epoch in plan:
        assert sorted(i for batch in epoch for part in batch for i in part) == list(range(7))
        assert [sum(len(part) for part in batch) for batch in epoch] == [3, 3, 1]
        for part in (part for batch in epoch for part in batch):
            assert len(part) * max(len(episodes[i].ids) for i in part) <= 64
    assert plan[0] != plan[1], "shuffled anew"


@pytest.mark.parametrize("centre", ["none", "prompt"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_minibatches_of_one(processes: int, centre: Literal["none", "prompt"]) -> None:
    """With three of them and whole prompts some have more episodes than others."""
    wanted = settings(episodes=16, group=4, centre_scores=centre, minibatch=6, epochs=2)
    episodes = [replace(EPISODES[0], answer=(k,)) for k in range(16)]
    whole = plan_epochs(episodes, wanted, torch.Generator().manual_seed(5), ALONE)
    ranks = [Ranks(rank, processes) for rank in range(processes)]
    own = [own_episodes(wanted, rank) for rank in ranks]
    assert sorted(i for of_rank in own for i in of_rank) == list(range(16))
    if centre == "prompt":
        assert all(len(of_rank) == 4 * len({i // 4 for i in of_rank}) for of_rank in own), "whole groups"
    parts = [
        plan_epochs([episodes[i] for i in of_rank], wanted, torch.Generator().manual_seed(5), rank)
        for of_rank, rank in zip(own, ranks, strict=True)
    ]
    for e, epoch in enumerate(whole):
        for b, batch in enumerate(epoch):
            theirs = [own[r][i] for r in range(processes) for part in parts[r][e][b] for i in part]
            assert sorted(theirs) == sorted(i for part in batch for i in part)


def test_the_first_loss_is_that_of_its_advantages(made: Actors) -> None:
    """At ratio 1 the surrogate is -mean(A) over the tokens; the value loss is 1/2 mean(return^2) at V = 0."""
    rollout = _rollout(made.policy)
    advantage = torch.arange(16.0).reshape(4, 4) * rollout.mask_BT
    aims = Targets(advantage, torch.full((4, 4), 0.1))
    loss, figures = micro_loss(made.policy, rollout, aims, [0, 1], settings(value_coefficient=0.5))
    # Row 0 has tokens 0 and 1 (A = 0, 1), row 1 has tokens 0 to 3 (A = 4, 5, 6, 7): -23/6.
    assert figures["policy_loss"] == pytest.approx(-23 / 6, abs=1e-4)
    assert figures["value_loss"] == pytest.approx(0.5 * 0.1**2, abs=1e-6)
    assert figures["ratio_error"] < 1e-5
    assert float(loss.detach()) == pytest.approx(-23 / 6 + 0.5 * 0.005, abs=1e-4)


def _naive_loss(
    policy: Policy, rollout: Rollout, index: Sequence[int], wanted: Reinforce, beta: float
) -> Tensor:
    """The same loss from the definitions, a token at a time, advantages whitened over all episodes."""
    rows = []
    for b, episode in enumerate(rollout.episodes):
        T = len(episode.answer)
        reward = [-beta * float(rollout.logp_BT[b, t] - rollout.reference_BT[b, t]) for t in range(T)]
        reward[-1] += float(rollout.score_B[b])
        value = [float(rollout.value_BT[b, t]) for t in range(T)] + [0.0]
        delta = [reward[t] + wanted.gamma * value[t + 1] - value[t] for t in range(T)]
        decay = wanted.gamma * wanted.lam
        rows.append([sum(decay ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)])
    flat = [a for row in rows for a in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8)
    surrogate, critic = [], []
    for b in index:
        reading = policy([rollout.episodes[b]])
        for t in range(len(rollout.episodes[b].answer)):
            white = (rows[b][t] - mean) / deviation
            ratio = torch.exp(reading.logp_N[t] - rollout.logp_BT[b, t])
            clipped = torch.clamp(ratio, 1 - wanted.clip, 1 + wanted.clip)
            surrogate.append(-torch.minimum(ratio * white, clipped * white))
            old = float(rollout.value_BT[b, t])
            target, new = rows[b][t] + old, reading.value_N[t]
            near = old + torch.clamp(new - old, -wanted.value_clip, wanted.value_clip)
            critic.append(0.5 * torch.maximum((new - target) ** 2, (near - target) ** 2))
    return torch.stack(surrogate).mean() + wanted.value_coefficient * torch.stack(critic).mean()


def test_loss_and_gradients_equal_a_naive_second_implementation(made: Actors) -> None:
    stir(made.policy, 7)
    wanted = settings(gamma=0.9, lam=0.8, clip=0.05, value_clip=0.02, value_coefficient=0.7)
    rollout = _rollout(made.policy)
    aims = _aims(rollout, wanted)
    stir(made.policy, 8, scale=0.01)  # Away from the old policy, so that both clips bite
    moved = list(trainable(made.policy).values())
    for index in ([0, 1, 2, 3], [3, 1]):
        loss, figures = micro_loss(made.policy, rollout, aims, index, wanted)
        naive = _naive_loss(made.policy, rollout, index, wanted, 0.1)
        assert figures["clip_share"] > 0
        torch.testing.assert_close(loss, naive, atol=1e-5, rtol=1e-4)
        ours = torch.autograd.grad(loss, moved, allow_unused=True)
        theirs = torch.autograd.grad(naive, moved, allow_unused=True)
        for a, b in zip(ours, theirs, strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-3)


def test_micro_batches_do_not_change_the_step(tiny_model_folder: Path, tmp_path: Path) -> None:
    found = []
    for cut in ([[[[0, 1, 2, 3]]]], [[[[2], [3, 0], [1]]]]):
        made = actors(tiny_model_folder, tmp_path)
        rollout = evaluate(made.policy, EPISODES, SCORES, cut[0])
        optimiser = _optimiser(made.policy)
        figures = improve(made.policy, optimiser, rollout, _aims(rollout, settings()), settings(), cut, ALONE)
        found.append((optimiser.masters(), figures))
    (one, first), (other, second) = found
    for name in one:
        # Adam's first step is lr times the sign of the gradient: an entry near 0 may differ by all of it.
        close = (one[name] - other[name]).abs() < 1e-5
        assert close.float().mean() > 0.98, name
    for name in ("policy_loss", "value_loss", "grad_norm"):
        assert first[name] == pytest.approx(second[name], rel=1e-4, abs=1e-6)


def test_an_epoch_ends_once_the_policy_is_too_far_from_the_old_one(made: Actors) -> None:
    rollout = _rollout(made.policy)
    plan = PLAN * 4
    wanted = settings(epoch_kl=0.01)
    figures = improve(
        made.policy, _optimiser(made.policy, 0.05), rollout, _aims(rollout, wanted), wanted, plan, ALONE
    )
    assert 1 / 8 <= figures["updates"] < 1
    loose = settings(epoch_kl=1e9)
    again = improve(
        made.policy,
        _optimiser(made.policy, 1e-6),
        _rollout(made.policy),
        _aims(rollout, loose),
        loose,
        plan,
        ALONE,
    )
    assert again["updates"] == 1.0


def test_in_the_warm_up_only_the_critic_learns(made: Actors) -> None:
    rollout = _rollout(made.policy)
    optimiser = _optimiser(made.policy)
    before = {name: t.clone() for name, t in optimiser.masters().items()}
    aims = _aims(rollout, settings())
    improve(made.policy, optimiser, rollout, aims, settings(), PLAN, ALONE, critic_only=True)
    moved = {name for name, t in optimiser.masters().items() if not torch.equal(t, before[name])}
    assert moved == {"value_head.weight", "value_head.bias"}


@pytest.mark.parametrize(
    ("error", "dtype", "fine"),
    [
        (0.9e-5, torch.float32, True),
        (1.1e-5, torch.float32, False),
        (0.9e-3, torch.bfloat16, True),
        (1.1e-3, torch.bfloat16, False),
        (math.nan, torch.float32, False),
    ],
)
def test_a_first_ratio_off_one_stops(error: float, dtype: torch.dtype, fine: bool) -> None:
    if fine:
        check_first_ratio(error, dtype)
    else:
        with pytest.raises(RunError, match="first ratio is off 1"):
            check_first_ratio(error, dtype)


def test_a_policy_that_changed_since_the_rollout_is_noticed(made: Actors) -> None:
    rollout = _rollout(made.policy)
    stir(made.policy, 1, scale=0.01)
    with pytest.raises(RunError, match="first ratio is off 1"):
        improve(
            made.policy, _optimiser(made.policy), rollout, _aims(rollout, settings()), settings(), PLAN, ALONE
        )


def test_what_was_sampled_is_described_by_source(made: Actors) -> None:
    rollout = replace(_rollout(made.policy), reference_BT=_rollout(made.policy).logp_BT - 0.5)
    refused = replace(rollout.episodes[1], refused=True)
    rollout = replace(rollout, episodes=(rollout.episodes[0], refused, *rollout.episodes[2:]))
    found = describe(rollout, 0.1, ("red_team", "helpful", "other"), ALONE)
    assert found["score"] == pytest.approx(0.3125)
    assert found["kl"] == pytest.approx(0.5 * 10 / 4)  # ten tokens of half a nat, four episodes
    assert found["reward"] == pytest.approx(0.3125 - 0.1 * 1.25)
    assert found["score_red_team"] == pytest.approx(0.75)
    assert found["score_helpful"] == pytest.approx(-0.125)
    assert (found["refused_red_team"], found["refused_helpful"]) == (0.0, 0.5)
    assert "score_other" not in found, "no episode, no mean"
    assert (found["length"], found["finished_share"], found["degenerate_share"]) == (2.5, 0.25, 0.25)
    spread = float(rollout.entropy_BT[rollout.mask_BT].mean())
    assert found["entropy"] == pytest.approx(spread, rel=1e-5)


def _train(
    folder: Path, tmp: Path, wanted: Reinforce, tokens: int, odd: "OddShare"
) -> tuple[list[dict[str, float]], Actors, Asker]:
    made = actors(folder, tmp, wanted)
    ask = Asker(folder, made, tokens)
    trainer = PPOTrainer(made.policy, odd, lambda step: ask(step, wanted.episodes), wanted, seed=1)
    return [trainer.step(step).metrics for step in range(wanted.steps)], made, ask


class OddShare:
    """Reward: the share of odd token ids in the answer, times a scale. Its optimum is the scale."""

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    def __call__(self, episodes: Sequence[Episode]) -> Tensor:
        return self._scale * odd_shares(episodes)


def test_it_reaches_the_known_optimum(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Reward 1 for an answer of odd tokens alone, from a start where fewer than half of them are."""
    wanted = settings(
        steps=20,
        episodes=32,
        minibatch=16,
        epochs=4,
        beta=0.0,
        learning_rate=6e-3,
        missing_end_score=None,
        sampling={"max_tokens": 4, "temperature": 1.0},
    )
    metrics, _, ask = _train(tiny_model_folder, tmp_path, wanted, 4, OddShare())
    after = float(OddShare()(ask(999, 128)).mean())
    assert metrics[0]["score"] < 0.65
    assert after > 0.95, [round(m["score"], 2) for m in metrics]
    assert all(m["ratio_error"] < 1e-5 for m in metrics)


class Like:
    """Reward of one token: b log(p'(token) / ref(token)), the log-ratio of two next-token distributions.

    Less b KL(p || ref) it is -b KL(p || p'): the best policy is p', and the objective there is 0.
    """

    def __init__(self, beta: float, wanted_V: Tensor, reference_V: Tensor) -> None:
        self._gain_V = beta * (wanted_V.log() - reference_V.log())

    def __call__(self, episodes: Sequence[Episode]) -> Tensor:
        return torch.stack([self._gain_V[e.answer[0]] for e in episodes])


@torch.no_grad()
def _next_token(made: Actors, adapter: str | None, prompt: tuple[int, ...]) -> Tensor:
    model = made.policy.actor.model
    with using(model, adapter):
        return torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].float(), -1)


def _kl(p_V: Tensor, q_V: Tensor) -> float:
    return float((p_V * (p_V.log() - q_V.log())).sum())


def test_with_a_kl_penalty_it_reaches_the_known_optimum(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The wanted distribution is the reference's own after another prompt, so the model can express it."""
    beta = 0.5
    wanted = settings(
        steps=30,
        episodes=64,
        minibatch=32,
        epochs=4,
        beta=beta,
        learning_rate=4e-3,
        missing_end_score=None,
        sampling={"max_tokens": 1, "temperature": 1.0},
    )
    made = actors(tiny_model_folder, tmp_path, wanted)
    ask = Asker(tiny_model_folder, made, 1)
    other_V, reference_V = (_next_token(made, None, p) for p in ((*ask.prompt, 30), ask.prompt))
    reward = Like(beta, other_V, reference_V)
    trainer = PPOTrainer(made.policy, reward, lambda step: ask(step, 64), wanted, seed=1)
    for step in range(wanted.steps):
        trainer.step(step)
    start, end = _kl(reference_V, other_V), _kl(_next_token(made, "policy", ask.prompt), other_V)
    assert start > 0.5, "far enough for a test"
    assert end < 0.05 * start


def test_the_kl_stays_within_its_target(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The same greedy reward, with and without a target: beta rises until the KL is no more than that."""
    common = {
        "steps": 40,
        "episodes": 32,
        "minibatch": 16,
        "epochs": 2,
        "beta": 0.05,
        "learning_rate": 4e-3,
        "missing_end_score": None,
        "sampling": {"max_tokens": 4, "temperature": 1.0},
    }
    free, _, _ = _train(tiny_model_folder, tmp_path, settings(**common), 4, OddShare(2.0))
    held, _, _ = _train(
        tiny_model_folder, tmp_path, settings(**common, kl_target=0.5, kl_horizon=40), 4, OddShare(2.0)
    )
    last = sum(m["kl"] for m in held[-8:]) / 8
    assert sum(m["kl"] for m in free[-8:]) / 8 > 1.0
    assert last < 0.6, [round(m["kl"], 2) for m in held]
    assert held[-1]["beta"] > 0.1
    assert sum(m["score"] for m in held[-8:]) / 8 > held[0]["score"]


def test_a_constant_reward_stops_after_three_steps(tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = settings(steps=5, missing_end_score=None, sampling={"max_tokens": 2})
    made = actors(tiny_model_folder, tmp_path, wanted)
    ask = Asker(tiny_model_folder, made, 2)
    trainer = PPOTrainer(
        made.policy, lambda e: torch.full((len(e),), 0.5), lambda step: ask(step, 4), wanted, seed=1
    )
    trainer.step(0)
    trainer.step(1)
    with pytest.raises(RunError, match=r"first 3 steps has the same score, 0\.5"):
        trainer.step(2)


def test_equal_scores_are_no_fault_once_they_have_differed(tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = settings(steps=6, missing_end_score=None, sampling={"max_tokens": 2})
    made = actors(tiny_model_folder, tmp_path, wanted)
    ask = Asker(tiny_model_folder, made, 2)
    scores = iter([torch.arange(4.0), *[torch.ones(4)] * 4])
    trainer = PPOTrainer(made.policy, lambda _: next(scores), lambda step: ask(step, 4), wanted, seed=1)
    for step in range(5):
        trainer.step(step)
    assert next(scores, None) is None, "all five steps were made"


def test_the_price_of_refusing_ordinary_prompts_follows_their_share(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """One of two such answers refuses, a quarter may: the price rises by half a point a step, K = 2."""
    wanted = settings(steps=3, missing_end_score=None, over_refusal=0.25, over_refusal_target=0.25)
    made = actors(tiny_model_folder, tmp_path, wanted)
    episodes = [replace(e, refused=i == 1) for i, e in enumerate(EPISODES)]
    trainer = PPOTrainer(
        made.policy, odd_shares, lambda step: episodes, wanted, seed=1, sources=("red_team", "helpful")
    )
    first, second = trainer.step(0).metrics, trainer.step(1).metrics
    assert [first["over_refusal"], second["over_refusal"]] == [0.25, 0.75]
    assert second["score_helpful"] == pytest.approx(first["score_helpful"] - 0.5 / 2)
    assert second["score_red_team"] == pytest.approx(first["score_red_team"])
    again = PPOTrainer(made.policy, odd_shares, lambda step: episodes, wanted, seed=1)
    again.restore(trainer.extra())
    assert again.over_refusal == trainer.over_refusal == 1.25


def test_scores_count_from_the_mean_of_their_kind() -> None:
    scores, kinds = (
        torch.tensor([2.0, -1.0, 4.0, 0.0, 7.0]),
        ["red_team", "helpful", "red_team", "helpful", "other"],
    )
    found = centred(scores, kinds, ("red_team", "helpful", "absent"), Ranks())
    torch.testing.assert_close(found, torch.tensor([-1.0, -0.5, 1.0, 0.5, 7.0]))
    assert scores[0] == 2, "the rollout's own scores stay"


def test_scores_count_from_the_mean_of_the_other_answers_to_their_prompt() -> None:
    """Of 1, 2, 6 the others' means are 4, 3.5, 1.5; of 5, 5, 5 there is nothing to learn."""
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    torch.testing.assert_close(left_out(scores, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))
    for group in (1, 4):
        with pytest.raises(ValueError, match="no groups"):
            left_out(scores, group)


def test_a_prompt_that_scores_lower_is_no_worse(tiny_model_folder: Path, tmp_path: Path) -> None:
    made = actors(tiny_model_folder, tmp_path, settings())
    episodes = [EPISODES[0], EPISODES[0], EPISODES[1], EPISODES[1]]
    rollout = evaluate(made.policy, episodes, torch.tensor([5.0, 1.0, 6.0, 2.0]), PLAN[0])
    higher = replace(rollout, score_B=rollout.score_B + torch.tensor([10.0, 10.0, 0.0, 0.0]))
    once, again = (
        targets(r, settings(centre_scores="prompt", group=2), 0.05, Ranks()) for r in (rollout, higher)
    )
    torch.testing.assert_close(once.advantage_BT, again.advantage_BT, atol=1e-5, rtol=1e-5)


def test_a_step_asks_each_prompt_as_often_as_its_group_is_large() -> None:
    asked: list[tuple[str, int]] = []

    class Listening:
        def answer(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Any]:
            asked.extend((p.text, s) for p, s in zip(prompts, seeds, strict=True))
            return []

    wanted = settings(centre_scores="prompt", episodes=4, group=2)
    recipe = Recipe(name="r", model="m", constitution="c", reinforce=wanted)
    prompts = [Prompt(origin="o", text=t, kind="red_team", split="train") for t in "abcd"]
    StepSampler(Listening(), prompts, recipe, Ranks())(1)
    assert [text for text, _ in asked] == ["c", "c", "d", "d"]
    assert len({seed for _, seed in asked}) == 4, "every answer is sampled anew"
    asked.clear()
    StepSampler(Listening(), prompts, recipe, Ranks(1, 2))(0)
    assert [text for text, _ in asked] == ["b", "b"], "a group stays in one process"
    with pytest.raises(RunError, match="some have none"):
        StepSampler(Listening(), prompts, recipe, Ranks(3, 4))(1)


def test_a_kind_that_scores_lower_is_no_worse(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Advantages do not depend on the level of a kind's scores."""
    made = actors(tiny_model_folder, tmp_path, settings())
    episodes = [
        replace(e, source=kind) for e, kind in zip(EPISODES, ["red_team", "helpful"] * 2, strict=True)
    ]
    rollout = evaluate(made.policy, episodes, torch.tensor([5.0, 1.0, 6.0, 2.0]), PLAN[0])
    higher = replace(rollout, score_B=rollout.score_B + torch.tensor([10.0, 0.0, 10.0, 0.0]))
    kinds = ("red_team", "helpful")
    once, again = (
        targets(r, settings(centre_scores="kind"), 0.05, Ranks(), kinds) for r in (rollout, higher)
    )
    torch.testing.assert_close(once.advantage_BT, again.advantage_BT, atol=1e-5, rtol=1e-5)
    plain, moved = (targets(r, settings(), 0.05, Ranks(), kinds) for r in (rollout, higher))
    assert (plain.advantage_BT - moved.advantage_BT).abs().max() > 0.1
