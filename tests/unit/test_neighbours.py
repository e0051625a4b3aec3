"""RLOO, GRPO and DPO by TRL: the same episodes, scores and ids as PPO, and policies that learn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from solon.errors import RunError, UsageError
from solon.models import load_model, load_tokenizer, resolve
from solon.records import Label
from solon.training.encoding import Encoder
from solon.training.neighbours import (
    OnlinePrompt,
    PreferencePair,
    Setup,
    preference_pairs,
    train_dpo,
    train_online,
)
from solon.training.rollout import Episode
from tests.ppo_setup import odd_shares, settings

Algorithm = Literal["rloo", "grpo"]
BOTH = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
GO = [OnlinePrompt("go", "red_team")] * 400
MIXED = [OnlinePrompt(f"{'go on ' * i}now", "helpful" if i % 3 else "red_team") for i in range(8)]


class Told:
    """Remembers the figures of every step; stops after one if it is told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[int] = []
        self.figures: list[dict[str, float]] = []
        self._stop_after = stop_after

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        self.steps.append(step)
        self.figures.append(figures)
        if step == self._stop_after:
            raise KeyboardInterrupt


class OddShare:
    """The share of odd ids in an answer; remembers the episodes it was asked of."""

    def __init__(self) -> None:
        self.calls: list[list[Episode]] = []

    def __call__(self, episodes: Sequence[Episode]) -> Tensor:
        self.calls.append(list(episodes))
        return odd_shares(episodes)


Make = Callable[..., tuple[Setup, Told]]


@pytest.fixture
def make(tiny_model_folder: Path, tmp_path: Path) -> Make:
    """A tiny model in float32 with fresh checkpoints, or those of an earlier call under the same name."""

    def made(name: str = "run", stop_after: int | None = None, **changes: Any) -> tuple[Setup, Told]:
        source, told = resolve(str(tiny_model_folder)), Told(stop_after)
        given = {"steps": 1, "episodes": 16, "minibatch": 8, "missing_end_score": None, **changes}
        model, tokenizer = load_model(source, "cpu", torch.float32), load_tokenizer(source)
        return Setup(model, tokenizer, settings(**given), 1, "cpu", tmp_path / name, told), told

    return made


def _many_ends(setup: Setup) -> frozenset[int]:
    """Let half of the vocabulary end an answer, so that answers of the random model do end."""
    ends = [int(setup.tokenizer.eos_token_id), *range(100, 300)]
    setup.model.generation_config.eos_token_id = ends
    return frozenset(ends)


@BOTH
def test_the_policy_learns_what_is_rewarded(algorithm: Algorithm, make: Make) -> None:
    sampling = {"max_tokens": 2, "temperature": 0.8}
    setup, told = make(
        steps=25, episodes=32, minibatch=16, beta=0.0, learning_rate=6e-3, sampling=sampling, epochs=2
    )
    train_online(algorithm, setup, GO, OddShare())
    scores = [f["score"] for f in told.figures]
    assert scores[0] < 0.5
    assert sum(scores[-3:]) / 3 > 0.9, scores
    assert told.steps == list(range(25))


@BOTH
def test_the_kl_penalty_holds_the_policy_back(algorithm: Algorithm, make: Make) -> None:
    last = {}
    for beta in (0.01, 1.0):
        setup, told = make(
            f"beta {beta}",
            steps=15,
            episodes=32,
            minibatch=16,
            beta=beta,
            learning_rate=6e-3,
            sampling={"max_tokens": 2},
        )
        train_online(algorithm, setup, GO, OddShare())
        last[beta] = told.figures[-1]
    assert last[1.0]["kl"] < 0.5 * last[0.01]["kl"]
    assert last[1.0]["score"] < last[0.01]["score"]


class Divergence(OddShare):
    """Beside the reward, the KL of the policy that has just answered from another model, by definition."""

    def __init__(self, policy: Any, reference: Any, temperature: float) -> None:
        super().__init__()
        self._models = (policy, reference)
        self._temperature = temperature
        self.k1: list[float] = []
        self.k3: list[float] = []

    def __call__(self, episodes: Sequence[Episode]) -> Tensor:
        ratios = []
        for e in episodes:
            pair = PreferencePair(e.prompt, e.answer, ())
            new, old = (_logps(model, pair, e.answer, self._temperature) for model in self._models)
            ratios.append(new - old)
        self.k1.append(float(torch.cat(ratios).sum()) / len(episodes))
        self.k3.append(sum(float((r + torch.exp(-r) - 1).sum()) for r in ratios) / len(episodes))
        return super().__call__(episodes)


@BOTH
def test_the_kl_is_that_of_an_episode(algorithm: Algorithm, make: Make) -> None:
    """Where every rollout is learnt from once; RLOO has PPO's estimator, GRPO k3."""
    setup, told = make(
        steps=4,
        minibatch=16,
        epochs=1,
        learning_rate=6e-3,
        sampling={"max_tokens": 3, "temperature": 0.8},
    )
    _many_ends(setup)
    reward = Divergence(setup.model, make()[0].model, 0.8)
    train_online(algorithm, setup, MIXED * 2, reward)
    wanted = reward.k1 if algorithm == "rloo" else reward.k3
    assert [f["kl"] for f in told.figures] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert wanted[-1] > 0.01


@BOTH
def test_the_reward_sees_the_episodes_of_the_prompts_in_their_order(algorithm: Algorithm, make: Make) -> None:
    setup, told = make(steps=2, group=4, sampling={"max_tokens": 3, "temperature": 1.0})
    ends, reward, encoder = _many_ends(setup), OddShare(), Encoder(setup.tokenizer)
    train_online(algorithm, setup, MIXED, reward)
    assert len(reward.calls) == 2, "both epochs of a step learn from one rollout"
    episodes = [e for call in reward.calls for e in call]
    assert [e.prompt for e in episodes] == [encoder.prompt(p.text) for p in MIXED for _ in range(4)]
    assert [e.source for e in episodes] == [p.source for p in MIXED for _ in range(4)]
    for episode in episodes:
        assert not ends.intersection(episode.answer[:-1]), "nothing stands behind the end"
        assert episode.finished == (episode.answer[-1] in ends)
        assert episode.finished or len(episode.answer) == 3
    assert 0 < sum(e.finished for e in episodes) < len(episodes)
    found = told.figures[0]
    first = reward.calls[0]
    assert found["length"] == pytest.approx(sum(len(e.answer) for e in first) / 16)
    assert found["finished_share"] == sum(e.finished for e in first) / 16
    assert found["degenerate_share"] == sum(e.degenerate for e in first) / 16
    helpful = [e for e in first if e.source == "helpful"]
    assert found["score_helpful"] == pytest.approx(float(OddShare()(helpful).mean()))
    assert found["refused_helpful"] == sum(e.refused for e in helpful) / len(helpful)
    by_source = [name for name in found if name.startswith(("score_", "refused_"))]
    kinds = sorted({p.source for p in MIXED})
    assert by_source == [f"{figure}_{kind}" for kind in kinds for figure in ("score", "refused")], (
        "every time"
    )


@BOTH
def test_answers_are_drawn_from_the_whole_distribution(algorithm: Algorithm, make: Make) -> None:
    """At the temperature, at the right prompt, whatever the model's own generation settings say."""
    setup, told = make(
        episodes=2048,
        minibatch=2048,
        batch_tokens=200_000,
        epochs=1,
        sampling={"max_tokens": 1, "temperature": 0.7},
        learning_rate=1e-9,
    )
    own = setup.model.generation_config
    own.update(min_p=0.2, top_k=5, suppress_tokens=[20, 21, 22])
    reward, prompt = OddShare(), Encoder(setup.tokenizer).prompt(GO[0].text)
    with torch.no_grad():
        logits = setup.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    wanted = torch.softmax(logits / 0.7, -1)
    # Among longer prompts, so that these rows are padded.
    asked = [GO[0] if i % 2 else OnlinePrompt("a question of more tokens", "x") for i in range(512)]
    train_online(algorithm, setup, asked, reward)
    drawn = torch.tensor([e.answer[0] for e in reward.calls[0] if e.source == "red_team"])
    shares = torch.bincount(drawn, minlength=len(wanted)) / len(drawn)
    assert 0.5 * float((shares - wanted).abs().sum()) < 0.12
    assert setup.model.generation_config is own
    # At its first update the policy is the one that was sampled from: ratios are 1, advantages sum to 0.
    assert told.figures[0]["policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert told.figures[0]["clip_share"] == 0.0
    assert told.figures[0]["kl"] == pytest.approx(0.0, abs=1e-5)


@BOTH
def test_a_missing_end_costs_and_so_answers_learn_to_end(algorithm: Algorithm, make: Make) -> None:
    setup, told = make(
        steps=15,
        episodes=32,
        minibatch=16,
        beta=0.0,
        learning_rate=6e-3,
        missing_end_score=-2.0,
        score_clip=3.0,
        sampling={"max_tokens": 2, "temperature": 1.0},
    )
    _many_ends(setup)
    train_online(algorithm, setup, GO, lambda episodes: torch.full((len(episodes),), 7.0))
    shares = [f["finished_share"] for f in told.figures]
    for found, share in zip(told.figures, shares, strict=True):
        assert found["score"] == pytest.approx(3.0 * share - 2.0 * (1 - share), abs=1e-5)
    assert shares[0] < 0.9
    assert shares[-1] > 0.95, shares


@BOTH
def test_micro_batches_do_not_change_the_step(algorithm: Algorithm, make: Make) -> None:
    found = []
    for tokens in (4096, 64):
        setup, told = make(
            f"{tokens}", epochs=1, minibatch=16, batch_tokens=tokens, sampling={"max_tokens": 5}
        )
        _many_ends(setup)  # Lengths differ, so that a mean of means would be another one
        train_online(algorithm, setup, GO, OddShare())
        found.append(told.figures[0])
    one, other = found
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert one["score"] == other["score"]


def test_grpo_scales_by_the_group_and_weighs_every_token_the_same(make: Make) -> None:
    """At ratio 1 the loss is minus the sum of A over all tokens, by their number."""
    setup, told = make(minibatch=16, epochs=1, beta=0.0, sampling={"max_tokens": 5, "temperature": 1.0})
    _many_ends(setup)
    reward = OddShare()
    train_online("grpo", setup, GO, reward)
    (episodes,) = reward.calls
    lengths = torch.tensor([len(e.answer) for e in episodes])
    scores = OddShare()(episodes).reshape(4, 4)
    advantages = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    wanted = -float((advantages.flatten() * lengths).sum() / lengths.sum())
    assert abs(wanted) > 0.01, "the case must tell the means apart"
    assert told.figures[0]["policy_loss"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dpo"])
def test_a_resumed_run_equals_an_uninterrupted_one(algorithm: Any, make: Make) -> None:
    reward = OddShare()

    def train(setup: Setup) -> dict[str, Tensor]:
        pairs = [PreferencePair((5, 6, 7 + i), (9 + i, 11, 2), (10, 12 + i)) for i in range(48)]
        model = train_dpo(setup, pairs) if algorithm == "dpo" else train_online(algorithm, setup, GO, reward)
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    changes = {"steps": 4, "learning_rate": 1e-3, "sampling": {"max_tokens": 2}}
    setup, whole = make("whole", **changes)
    wanted = train(setup)
    with pytest.raises(KeyboardInterrupt):
        train(make("cut", stop_after=10 if algorithm == "dpo" else 2, **changes)[0])
    asked = len(reward.calls)
    # The first time it goes on, the second time there is nothing left to do.
    for rollouts in (2, 0):
        setup, resumed = make("cut", **changes)
        got = train(setup)
        assert len(reward.calls) - asked == (0 if algorithm == "dpo" else rollouts)
        assert resumed.steps == list(range(len(whole.steps)))
        assert resumed.figures == whole.figures
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
        asked = len(reward.calls)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_told(algorithm: Algorithm, bad: float, make: Make) -> None:
    setup, told = make(sampling={"max_tokens": 2})
    with pytest.raises(RunError, match="1 values that are no numbers for 16 episodes"):
        train_online(algorithm, setup, GO, lambda e: torch.tensor([bad] + [0.0] * (len(e) - 1)))
    assert not told.steps


def test_a_loss_that_is_no_number_is_told(make: Make) -> None:
    setup, told = make(learning_rate=1e38, sampling={"max_tokens": 2})
    with pytest.raises(RunError, match=r"rloo: .* is nan at update 2.*Lower reinforce\.learning_rate"):
        train_online("rloo", setup, GO, OddShare())
    assert not told.steps


def test_minibatches_that_do_not_fit_are_refused(make: Make) -> None:
    setup, _ = make(episodes=16, minibatch=6)
    with pytest.raises(UsageError, match=r"episodes \(16\) must be a multiple of reinforce.minibatch \(6\)"):
        train_online("grpo", setup, GO, OddShare())


def test_too_few_prompts_are_refused(make: Make) -> None:
    setup, _ = make(steps=2)
    with pytest.raises(ValueError, match="7 prompts for 8 groups"):
        train_online("grpo", setup, GO[:7], OddShare())


def _label(p_a: float | None, **changes: Any) -> Label:
    given = {"origin": "test", "prompt_id": "p", "prompt": "go", "prompt_kind": "red_team"}
    ends = {"a_id": "1", "b_id": "2", "a": "yes, a map", "b": "no", "a_finish": "length", "b_finish": "stop"}
    return Label.model_validate({**given, **ends, "p_a": p_a, **changes})


def test_pairs_are_the_labels_that_prefer_an_answer(make: Make) -> None:
    tokenizer = make()[0].tokenizer
    encoder, end = Encoder(tokenizer), int(tokenizer.eos_token_id)
    prompt = encoder.prompt("go")
    a = tuple(tokenizer("yes, a map", add_special_tokens=False)["input_ids"])
    b = (*tokenizer("no", add_special_tokens=False)["input_ids"], end)
    labels = [_label(0.9), _label(0.5), _label(None, unscored="why"), _label(0.1), _label(0.8, dropped="why")]
    assert preference_pairs(labels, encoder, 512) == [
        PreferencePair(prompt, a, b),
        PreferencePair(prompt, b, a),
    ]
    (cut,) = preference_pairs([_label(0.4)], encoder, len(prompt) + 1)
    assert cut == PreferencePair(prompt, b[:1], a[:1])


def _logps(model: Any, pair: PreferencePair, answer: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the answer's tokens, from a plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*pair.prompt, *answer]])).logits[0].float()
    start = len(pair.prompt) - 1
    rows = torch.log_softmax(logits[start : start + len(answer)] / temperature, -1)
    return rows[torch.arange(len(answer)), torch.tensor(answer)]


def test_dpo_widens_the_margin_of_its_pairs(make: Make) -> None:
    """The figures are those of the definition, beta times the change of log p(chosen) - log p(rejected)."""
    setup, told = make(minibatch=4, epochs=6, learning_rate=2e-3, dpo_beta=0.2)
    encoder = Encoder(setup.tokenizer)
    labels = [
        _label(0.9 if i % 2 else 0.1, prompt=f"{'go ' * i}now", a=f"yes {i}", b=f"no, {i}") for i in range(8)
    ]
    pairs = preference_pairs(labels, encoder, 512)

    def margins(model: Any) -> list[float]:
        return [float(_logps(model, p, p.chosen).sum() - _logps(model, p, p.rejected).sum()) for p in pairs]

    before = margins(setup.model)
    model = train_dpo(setup, pairs)
    gained = [after - first for after, first in zip(margins(model), before, strict=True)]
    assert min(gained) > 1.0, gained
    assert told.steps == list(range(12))
    assert told.figures[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert told.figures[-1]["accuracy"] == 1.0
    # The last margins were measured before the last, smallest updates.
    ends = [f["margin"] for f in told.figures[-2:]]
    assert sum(ends) / 2 == pytest.approx(0.2 * sum(gained) / len(gained), rel=0.1)


def test_dpo_reads_the_ids_that_it_was_given(make: Make) -> None:
    setup, _ = make(minibatch=2, epochs=1)
    pairs = [PreferencePair((5, 6, 7), (8, 9), (10, 11, 2)), PreferencePair((5,), (12, 2), (13, 14, 15, 16))]
    rows: list[tuple[int, ...]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
            rows.append(tuple(ids[mask.bool()].tolist()))

    setup.model.model.register_forward_pre_hook(note, with_kwargs=True)
    train_dpo(setup, pairs)
    assert set(rows) == {(*p.prompt, *answer) for p in pairs for answer in (p.chosen, p.rejected)}


def test_dpo_without_a_pair_is_told(make: Make) -> None:
    with pytest.raises(RunError, match="no label prefers an answer"):
        train_dpo(make()[0], [])


def test_a_model_trained_whole_moves_away_from_a_reference_that_stays(make: Make) -> None:
    setup, told = make(method="full", steps=3, learning_rate=1e-3, beta=0.05, sampling={"max_tokens": 2})
    before = setup.model.model.norm.weight.detach().clone()
    trained = train_online("rloo", setup, GO, OddShare())
    assert not hasattr(trained, "peft_config")
    assert not torch.equal(trained.model.norm.weight, before)
    assert told.figures[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert told.figures[-1]["kl"] > 0.0


def test_adapters_of_a_bfloat16_model_learn_in_float32(make: Make) -> None:
    setup, told = make(steps=2, sampling={"max_tokens": 2})
    trained = train_online("grpo", replace(setup, model=setup.model.bfloat16()), GO, OddShare())
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trained.get_base_model().model.norm.parameters()} == {torch.bfloat16}
    assert trained.config.use_cache
    assert all(math.isfinite(v) for f in told.figures for v in f.values())
