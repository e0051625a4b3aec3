"""The reward model's readings, its fitted start, and what it keeps of both."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.engines.hooks import blocks
from solon.errors import RunError
from solon.feedback.readout import fit
from solon.models import load_model, load_tokenizer, resolve
from solon.recipe import Recipe
from solon.records import Label, Prompt, PromptKind
from solon.stages.reward import EncodedPair, asked, held_out, reference, split_pairs, start_head
from solon.training.adapters import trainable, using
from solon.training.encoding import Encoded, Encoder
from solon.training.head_start import fit_gate, fit_head
from solon.training.reward_model import RewardModel, load_reward_model, new_reward_model
from solon.training.views import ReadAt, View
from solon.training_settings import Lora
from tests.ppo_setup import EPISODES, stir

HALF = ReadAt(0.5, "mean")
WHOLE = ReadAt(1.0, "mean")


def _new(folder: Path, at: ReadAt) -> RewardModel:
    return new_reward_model(resolve(str(folder)), "cpu", torch.float32, Lora(rank=4, alpha=8), 1, at)


def _model(folder: Path, at: ReadAt) -> RewardModel:
    made = _new(folder, at)
    stir(made, 2, scale=0.05)
    return made


@pytest.mark.parametrize("at", [HALF, WHOLE, ReadAt(0.5, "last")])
def test_it_reads_where_it_is_told_to(tiny_model_folder: Path, at: ReadAt) -> None:
    """By hand: transformers' own hidden states of each row alone."""
    made = _model(tiny_model_folder, at)
    model = made.view.model
    read = made.features(EPISODES)
    for row, state, prompt in zip(EPISODES, read.answer_BD, read.prompt_BD, strict=True):
        with using(model, "default"), torch.no_grad():
            output = model.base_model(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        states_TD = output.last_hidden_state[0] if at.depth == 1 else output.hidden_states[1][0]
        taken = states_TD[-1:] if at.pooling == "last" else states_TD[len(row.prompt) :]
        torch.testing.assert_close(state, taken.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prompt, states_TD[len(row.prompt) - 1], atol=1e-5, rtol=1e-4)


def test_answers_with_one_prompt_are_read_whole(tiny_model_folder: Path) -> None:
    """What two rows have in common is read once, but an answer's common first tokens count in its mean."""
    made = _model(tiny_model_folder, WHOLE)
    prompt = EPISODES[0].prompt
    rows = [Encoded(prompt, (8, 9, 10)), Encoded(prompt, (8, 9, 11)), Encoded(prompt, ())]
    together, alone = made.score(rows), torch.cat([made.score([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    at_prompt = View(made.view.model, "default").states([Encoded(prompt, (8,))])[0]
    torch.testing.assert_close(made.features(rows).answer_BD[2], at_prompt.detach(), atol=1e-5, rtol=1e-4)


def test_an_answer_in_several_pairs_is_read_once(tiny_model_folder: Path) -> None:
    made = _model(tiny_model_folder, WHOLE)
    read: list[Encoded] = []
    made.register_forward_pre_hook(lambda _module, arguments: read.extend(arguments[0]))
    a, b, c = EPISODES[:3]
    scores = made.score([a, b, c, b, a])
    assert sorted(read, key=EPISODES.index) == [a, b, c]
    torch.testing.assert_close(scores, torch.cat([made.score([row]) for row in (a, b, c, b, a)]))


def test_features_are_of_the_trunk_alone_where_its_adapter_does_not_count(tiny_model_folder: Path) -> None:
    made, new = _model(tiny_model_folder, HALF), _new(tiny_model_folder, HALF)
    assert torch.equal(made.features(EPISODES, adapted=False).answer_BD, new.features(EPISODES).answer_BD)
    assert not torch.equal(made.features(EPISODES).answer_BD, new.features(EPISODES).answer_BD)


def test_blocks_that_are_not_read_have_no_adapter(tiny_model_folder: Path) -> None:
    made = _model(tiny_model_folder, HALF)
    adapted = {name.split(".layers.")[1].split(".")[0] for name in trainable(made) if ".layers." in name}
    assert adapted == {"0"}
    assert len(blocks(made.view.model)) == 2
    made(EPISODES).sum().backward()
    assert all(p.grad is not None for p in trainable(made).values())


def test_a_saved_one_reads_at_the_same_place(tiny_model_folder: Path, tmp_path: Path) -> None:
    made = _model(tiny_model_folder, HALF)
    made.normalise_on(EPISODES)
    expected = made.score(EPISODES)
    source = resolve(str(tiny_model_folder))
    made.save(tmp_path / "reward", load_tokenizer(source))
    trunk = load_model(source, "cpu", torch.float32)
    again = load_reward_model(tmp_path / "reward", trunk, load_tokenizer(source))
    assert again.at == HALF
    torch.testing.assert_close(again.score(EPISODES), expected, atol=1e-5, rtol=1e-4)
    about = json.loads((tmp_path / "reward" / "reward.json").read_text(encoding="utf-8"))
    assert (about["depth"], about["pooling"]) == (0.5, "mean")


def test_a_fitted_head_starts_at_the_regression(tiny_model_folder: Path) -> None:
    """Differences of its first scores are the log-odds that the regression gives the training pairs."""
    made = _new(tiny_model_folder, WHOLE)
    pairs = [
        EncodedPair(str(i), EPISODES[i % 4], EPISODES[(i + 1 + i // 4) % 4], [0.9, 0.2, 0.7, 0.4][i % 4])
        for i in range(12)
    ]
    start_head(made, pairs, seed=0)
    a, b = (made.features([getattr(p, side) for p in pairs]).answer_BD.double().numpy() for side in "ab")
    head = fit_head(a, b, np.array([p.p_a for p in pairs]), [p.prompt_id for p in pairs])
    raw = made.score([p.a for p in pairs]) - made.score([p.b for p in pairs])
    np.testing.assert_allclose(raw.numpy(), (a - b) @ head.common.weight_D, atol=1e-4)
    assert float(made.head.weight.detach().abs().max()) > 0


def test_a_fitted_head_finds_the_direction_that_labels_follow() -> None:
    rng = np.random.default_rng(0)
    a, b, truth = rng.normal(5, 3, (400, 6)), rng.normal(5, 3, (400, 6)), np.array([1.0, -0.5, 0, 0, 0, 0])
    p = 1 / (1 + np.exp(-((a - b) @ truth)))
    head = fit_head(a, b, p, [str(i // 4) for i in range(400)])
    np.testing.assert_allclose(head.common.weight_D, truth, atol=0.15)
    assert head.l2 == 1, "labels without noise want the weakest penalty"
    assert float(head.common(a).mean() + head.common(b).mean()) == pytest.approx(0, abs=1e-9)
    assert head.by_kind is None


def test_a_gate_lets_one_kind_of_prompt_want_what_the_other_does_not() -> None:
    """Refuse this, answer that: along one direction of the states, the sign is the prompt's."""
    rng = np.random.default_rng(1)
    a, b, asked = rng.normal(0, 1, (300, 4)), rng.normal(0, 1, (300, 4)), rng.normal(2, 1, (300, 3))
    red_team = asked[:, 0] > 2
    p = 1 / (1 + np.exp(-4 * (a - b)[:, 1] * np.where(red_team, 1, -1)))
    prompts = [str(i) for i in range(300)]
    gate, unseen = fit_gate(asked, red_team, prompts)
    assert ((gate(asked) > 0) == red_team).mean() > 0.95
    assert ((unseen > 0) == red_team).mean() > 0.9
    gates = np.tanh(unseen / 2)
    head = fit_head(a, b, p, prompts, gates)
    assert head.by_kind is not None
    delta = head.common(a) - head.common(b) + gates * (head.by_kind(a) - head.by_kind(b))
    assert ((delta > 0) == (p > 0.5)).mean() > 0.9
    plain = fit_head(a, b, p, prompts)
    assert (((plain.common(a) - plain.common(b)) > 0) == (p > 0.5)).mean() < 0.65


def test_prompts_of_one_kind_open_no_gate() -> None:
    gate, unseen = fit_gate(np.ones((4, 3)), np.array([True] * 4), list("abcd"))
    np.testing.assert_array_equal(gate(np.ones((4, 3))), np.zeros(4))
    np.testing.assert_array_equal(unseen, np.zeros(4))


def test_a_gate_of_noise_is_not_sure_of_prompts_that_it_has_not_seen() -> None:
    """With more features than prompts a fitted gate knows nearly all; what the head gets is honest."""
    rng = np.random.default_rng(2)
    asked, red_team = rng.normal(0, 1, (80, 200)), rng.random(80) < 0.5
    gate, unseen = fit_gate(asked, red_team, [str(i) for i in range(80)])
    assert ((gate(asked) > 0) == red_team).mean() > 0.9
    assert np.abs(unseen).mean() < 0.7 * np.abs(gate(asked)).mean()
    assert 0.3 < ((unseen > 0) == red_team).mean() < 0.7


def test_rows_of_one_prompt_alone_leave_nothing_to_choose_by() -> None:
    """Then the strongest penalty, which claims the least, and no word on rows that were seen."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (6, 3)), rng.normal(0, 1, (6, 3))
    head = fit_head(a, b, np.full(6, 0.9), ["one"] * 6)
    assert head.l2 == 10_000
    assert np.isfinite(head.common.weight_D).all()
    _, unseen = fit_gate(a, np.array([True, False] * 3), ["one"] * 6)
    np.testing.assert_array_equal(unseen, np.zeros(6))


def _labels(*p: float, crossed: bool = False) -> list[Label]:
    """Of as many prompts, a pair each."""
    return [
        Label(
            origin="test",
            prompt_id=f"p{i}",
            prompt=f"How {i}?",
            prompt_kind="red_team",
            a_id=f"a{i}",
            b_id=f"b{i}",
            a="I know.",
            b="I cannot say.",
            a_finish="stop",
            b_finish="stop",
            p_a=value,
            crossed=crossed,
        )
        for i, value in enumerate(p)
    ]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (_labels(0.9, 0.9, 0.9, crossed=True), "two different answers"),
        (_labels(0.5, 0.5, 0.5), "has a preference"),
    ],
)
def test_pairs_that_cannot_measure_a_reward_model_are_refused_before_its_training(
    tiny_model_folder: Path, labels: list[Label], reason: str
) -> None:
    encoder = Encoder(load_tokenizer(resolve(str(tiny_model_folder))))
    with pytest.raises(RunError, match=reason):
        split_pairs(labels, encoder, Recipe(name="r"))


def _mixed() -> list[EncodedPair]:
    kinds: list[PromptKind] = ["red_team", "helpful"]
    labels = [0.9, 0.2, 0.7, 0.4]
    return [
        EncodedPair(str(i), EPISODES[i % 4], EPISODES[(i + 1 + i // 4) % 4], labels[i % 4], kinds[i % 2])
        for i in range(12)
    ]


def _starts_at_the_regressions(made: RewardModel, pairs: list[EncodedPair]) -> None:
    """Every pair has a prompt of its own here, so that each is a row of the gate's regression."""
    assert made.gate is not None
    prompts = [p.prompt_id for p in pairs]
    read = {side: made.features([getattr(p, side) for p in pairs]) for side in "ab"}
    asked = read["a"].prompt_BD.double().numpy()
    gate, unseen = fit_gate(asked, np.array([p.kind == "red_team" for p in pairs]), prompts)
    np.testing.assert_allclose(made.gate.kind.weight[0].detach().numpy(), gate.weight_D, atol=1e-5)
    a, b = (read[side].answer_BD.double().numpy() for side in "ab")
    head = fit_head(a, b, np.array([p.p_a for p in pairs]), prompts, np.tanh(unseen / 2))
    assert head.by_kind is not None
    np.testing.assert_allclose(made.head.weight[0].detach().numpy(), head.common.weight_D, atol=1e-4)
    np.testing.assert_allclose(made.gate.by_kind.weight[0].detach().numpy(), head.by_kind.weight_D, atol=1e-4)


def test_a_gated_model_starts_at_the_regression_and_survives_its_file(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = resolve(str(tiny_model_folder))
    lora = Lora(rank=4, alpha=8)
    made = new_reward_model(source, "cpu", torch.float32, lora, 1, HALF, gated=True)
    plain = new_reward_model(source, "cpu", torch.float32, lora, 1, HALF)
    torch.testing.assert_close(made.score(EPISODES), plain.score(EPISODES), msg="a new gate changes nothing")
    pairs = _mixed()
    start_head(made, pairs, seed=0)
    assert made.gate is not None
    _starts_at_the_regressions(made, pairs)
    stir(made, 2, scale=0.05)
    read = made.features([p.a for p in pairs])
    by_hand = (
        read.answer_BD @ made.head.weight[0]
        + made.head.bias
        + torch.tanh((read.prompt_BD @ made.gate.kind.weight[0] + made.gate.kind.bias) / 2)
        * (read.answer_BD @ made.gate.by_kind.weight[0] + made.gate.by_kind.bias)
    )
    torch.testing.assert_close(made.score([p.a for p in pairs]), by_hand.detach(), atol=1e-4, rtol=1e-4)
    assert float(made.gate.by_kind.weight.detach().abs().max()) > 0
    made.normalise_on(EPISODES)
    expected = made.score(EPISODES)
    made.save(tmp_path / "reward", load_tokenizer(source))
    trunk = load_model(source, "cpu", torch.float32)
    again = load_reward_model(tmp_path / "reward", trunk, load_tokenizer(source))
    torch.testing.assert_close(again.score(EPISODES), expected, atol=1e-5, rtol=1e-4)


def test_a_gate_learns_from_prompts_without_answers_too_save_those_that_test_it(
    tiny_model_folder: Path,
) -> None:
    source = resolve(str(tiny_model_folder))
    made = new_reward_model(source, "cpu", torch.float32, Lora(rank=4, alpha=8), 1, HALF, gated=True)
    encoder, recipe = Encoder(load_tokenizer(source)), Recipe.model_validate({"name": "r"})
    texts = {f"{kind} number {i}": kind for kind in ("red_team", "helpful") for i in range(8)}
    prompts = [Prompt(origin="o", text=t, kind=k, split="train") for t, k in texts.items()]
    train, test = _mixed(), [replace(_mixed()[0], prompt_id=prompts[3].id)]
    known = asked([*prompts, prompts[0].model_copy(update={"split": "heldout"})], test, encoder, recipe)
    assert [a.prompt_id for a in known] == [p.id for p in prompts if p is not prompts[3]]
    start_head(made, train, 0, known)
    rows = {p.prompt_id: (p.a, p.kind) for p in train} | {a.prompt_id: (a.row, a.kind) for a in known}
    states = made.features([row for row, _ in rows.values()]).prompt_BD.double().numpy()
    gate, _ = fit_gate(states, np.array([kind == "red_team" for _, kind in rows.values()]), list(rows))
    assert made.gate is not None
    np.testing.assert_allclose(made.gate.kind.weight[0].detach().numpy(), gate.weight_D, atol=1e-4)


def test_a_gated_model_does_not_prefer_a_kind_of_prompt(tiny_model_folder: Path) -> None:
    """Its scores keep their differences within a kind, and lose the slope over the gate."""
    source = resolve(str(tiny_model_folder))
    made = new_reward_model(source, "cpu", torch.float32, Lora(rank=4, alpha=8), 1, HALF, gated=True)
    stir(made, 3, scale=0.5)
    assert made.gate is not None
    opened = made.gate.opened(made.features(EPISODES).prompt_BD).squeeze(-1).detach()
    centred = opened - opened.mean()
    raw = made.score(EPISODES)
    assert abs(float((centred * raw).sum())) > 1e-3
    made.normalise_on(EPISODES)
    scores = made.score(EPISODES)
    assert float((centred * scores).sum()) == pytest.approx(0, abs=1e-4)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std()) == pytest.approx(1, abs=1e-5)


def test_agreement_is_told_for_each_sort_of_pair(tiny_model_folder: Path) -> None:
    made = _model(tiny_model_folder, HALF)
    pairs = [replace(pair, crossed=i < 4) for i, pair in enumerate(_mixed())]
    figures = held_out(made, pairs)
    sorts = [(f["kind"], f["crossed"], f["n"]) for f in figures["by_pairs"]]
    assert sorts == [
        ("helpful", False, 4),
        ("helpful", True, 2),
        ("red_team", False, 4),
        ("red_team", True, 2),
    ]
    assert figures["prompts"] == len({pair.prompt_id for pair in pairs if not pair.crossed})
    right = sum(f["accuracy"] * f["n"] for f in figures["by_pairs"] if not f["crossed"])
    assert figures["n"] == 8, "the headline is of the prompts' own answers"
    assert right / 8 == pytest.approx(figures["heldout_accuracy"])


def test_pairs_across_prompts_do_not_move_what_scores_are_measured_by() -> None:
    own = _mixed()
    foreign = [
        EncodedPair("0", EPISODES[0], Encoded(EPISODES[0].prompt, (3, 4, i)), 0.9, "red_team", True)
        for i in range(5)
    ]
    assert reference([*own, *foreign], seed=0) == reference(own, seed=0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.99))
def test_a_soft_label_is_a_mixture_of_two_hard_ones(p: float) -> None:
    """p of one pair is p pairs one way and 1 - p the other: checked at the optimum's own gradient, 0."""
    better, worse = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((2, 2))
    readout = fit(better, worse, l2=0.5, p_n=np.array([p, 0.8]))
    difference = (better - worse) / readout.scale_D
    said = 1 / (1 + np.exp(-(difference @ readout.overall_D)))
    gradient = 0.5 * readout.overall_D - difference.T @ (np.array([p, 0.8]) - said)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_a_critic_that_starts_as_the_reward_model_wants_the_last_token() -> None:
    with pytest.raises(ValidationError, match=r"reward\.pooling: last"):
        Recipe.model_validate(
            {"name": "x", "reinforce": {"critic": "adapter"}, "reward": {"pooling": "mean"}}
        )


def test_a_gate_is_no_start_for_a_critic() -> None:
    with pytest.raises(ValidationError, match=r"reward\.head"):
        Recipe.model_validate({"name": "x", "reinforce": {"critic": "adapter"}, "reward": {"head": "gated"}})
