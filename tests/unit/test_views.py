"""Several models on one trunk: each reads as it would alone, and none changes another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solon.engines.hooks import plain_head
from solon.errors import RunError
from solon.models import load_model, load_tokenizer, resolve
from solon.training.adapters import add_adapter, load_adapter, train_only, trainable, using
from solon.training.encoding import Encoded
from solon.training.head import chosen_logprobs, log_normalisers
from solon.training.losses import entropy, token_logprobs
from solon.training.policy import CRITIC, POLICY, REWARD, Actors
from solon.training.reward_model import load_reward_model, new_reward_model
from solon.training.views import View
from solon.training_settings import Lora
from tests.ppo_setup import EPISODES, HEADER, actors, settings, stir
from tests.tiny import build_tiny


@pytest.fixture
def made(tiny_model_folder: Path, tmp_path: Path) -> Actors:
    found = actors(tiny_model_folder, tmp_path)
    stir(found.policy, 3)
    return found


def _plain_logprobs(view: View, episode: Encoded, temperature: float) -> Tensor:
    """One forward pass over one row, every logit written out."""
    with using(view.model, view.adapter), torch.no_grad():
        logits = view.model(input_ids=torch.tensor([episode.ids])).logits[0].float() / temperature
    before = len(episode.prompt) - 1
    logp = torch.log_softmax(logits, -1)
    return torch.stack([logp[before + t, token] for t, token in enumerate(episode.answer)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_speaking_equals_a_plain_forward_of_each_row(made: Actors, temperature: float) -> None:
    view = made.policy.actor
    spoken = view.speak(EPISODES, temperature)
    expected = torch.cat([_plain_logprobs(view, e, temperature) for e in EPISODES])
    torch.testing.assert_close(spoken.logp_N.detach(), expected, atol=1e-5, rtol=1e-5)


def test_a_common_start_is_computed_once_with_the_same_gradients(
    made: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, moved = made.policy.actor, trainable(made.policy)
    weights = torch.randn(10, generator=torch.Generator().manual_seed(0))
    widths: list[int] = []

    def read() -> dict[str, Tensor]:
        spoken = view.speak(EPISODES, 1.0)
        grads = torch.autograd.grad((spoken.logp_N * weights).sum(), list(moved.values()), allow_unused=True)
        return {name: g for name, g in zip(moved, grads, strict=True) if g is not None}

    def note(module: object, args: object, kwargs: dict[str, Tensor]) -> None:
        widths.append(kwargs["input_ids"].shape[0] * kwargs["input_ids"].shape[1])

    assert plain_head(view.model) is not None  # Measured in a pass that is not counted
    hook = view.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    shared = read()
    cost_shared, widths[:] = sum(widths), []
    monkeypatch.setattr("solon.training.planting.shares_starts", lambda model: False)
    apart = read()
    hook.remove()
    assert sum(widths) - cost_shared == 3 * len(HEADER) + 1, "the header, and a prompt's next token, once"
    assert shared.keys() == apart.keys()
    for name in shared:
        torch.testing.assert_close(shared[name], apart[name], atol=1e-5, rtol=1e-4)


def test_logits_that_a_model_caps_are_capped(made: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is more than a matrix is asked itself."""
    view = made.policy.actor
    plain = view.speak(EPISODES, 1.0)
    monkeypatch.setattr("solon.training.views.plain_head", lambda model: None)
    through = view.speak(EPISODES, 1.0)
    torch.testing.assert_close(through.logp_N, plain.logp_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(through.entropy_N, plain.entropy_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(through.hidden_ND, plain.hidden_ND, atol=1e-6, rtol=1e-5)


def test_adapters_are_apart_and_switching_leaves_no_trace(made: Actors) -> None:
    model = made.policy.actor.model
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    read = {name: View(model, name).states(EPISODES).detach() for name in (POLICY, REWARD, None)}
    assert (read[POLICY] - read[None]).abs().max() > 1e-3
    assert (read[REWARD] - read[POLICY]).abs().max() > 1e-3
    again = View(model, POLICY).states(EPISODES).detach()
    assert torch.equal(again, read[POLICY])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert any(flags.values())
    assert all(".policy." in name for name, wanted in flags.items() if wanted)


def test_the_reference_is_the_model_before_any_adapter(made: Actors, tiny_model_folder: Path) -> None:
    base = View(load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32))
    expected = torch.cat([_plain_logprobs(base, e, 1.0) for e in EPISODES])
    torch.testing.assert_close(made.policy.reference_logprobs(EPISODES), expected, atol=1e-5, rtol=1e-5)


def test_a_reward_model_scores_on_the_shared_trunk_as_alone(
    made: Actors, tiny_model_folder: Path, tmp_path: Path
) -> None:
    source = resolve(str(tiny_model_folder))
    alone = load_reward_model(
        tmp_path / "reward", load_model(source, "cpu", torch.float32), load_tokenizer(source)
    )
    torch.testing.assert_close(made.reward.score(EPISODES), alone.score(EPISODES), atol=1e-5, rtol=1e-5)
    with using(alone.view.model, "reward"), torch.no_grad():
        ids = torch.tensor([EPISODES[1].ids])
        one = alone.view.model.base_model(input_ids=ids).last_hidden_state[0, -1]
    by_hand = (float(alone.head(one)) - 0.25) / 2.0
    assert float(alone.score(EPISODES)[1]) == pytest.approx(by_hand, abs=1e-5)
    assert not any(p.requires_grad for p in made.reward.head.parameters())


def test_a_reward_model_of_another_tokenizer_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny_model_folder))
    tokenizer = load_tokenizer(source)
    reward = new_reward_model(source, "cpu", torch.float32, Lora(rank=4, alpha=8), 1)
    reward.save(tmp_path / "reward", tokenizer)
    tokenizer.add_tokens(["<another>"])
    with pytest.raises(RunError, match="another tokenizer"):
        load_reward_model(tmp_path / "reward", load_model(source, "cpu", torch.float32), tokenizer)


def test_a_reward_model_of_another_trunk_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny_model_folder))
    reward = new_reward_model(source, "cpu", torch.float32, Lora(rank=4, alpha=8), 1)
    reward.save(tmp_path / "reward", load_tokenizer(source))
    other = resolve(str(build_tiny(tmp_path / "other", width=32)))
    with pytest.raises(RunError, match="not a reward model of this trunk"):
        load_reward_model(tmp_path / "reward", load_model(other, "cpu", torch.float32), load_tokenizer(other))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_critic_of_its_own_starts_as_the_reward_model(
    tiny_model_folder: Path, tmp_path: Path, method: str
) -> None:
    made = actors(tiny_model_folder, tmp_path, settings(critic="adapter", method=method))
    reading = made.policy(EPISODES)
    # The value before the second answer token is the score of the row up to the first.
    cut = [replace(e, answer=e.answer[:1]) for e in EPISODES if len(e.answer) > 1]
    seconds = [1, 3, 8]  # places in the answers laid end to end: lengths 2, 4, 1, 3
    torch.testing.assert_close(
        reading.value_N.detach()[seconds], made.reward.score(cut), atol=1e-4, rtol=1e-4
    )
    kinds = {name.split(".")[-2] for name in trainable(made.policy) if "lora" in name}
    assert kinds == ({POLICY, CRITIC} if method == "lora" else {CRITIC})


def test_full_training_has_a_copy_of_its_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    made = actors(tiny_model_folder, tmp_path, settings(method="full"))
    before = made.policy.reference_logprobs(EPISODES)
    stir(made.policy, 5, scale=0.05)
    assert (made.policy(EPISODES).logp_N.detach() - before).abs().max() > 1e-2
    assert torch.equal(made.policy.reference_logprobs(EPISODES), before)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_the_head_in_slices_equals_all_logits(
    rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solon.training.head._LOGITS_CPU", 3 * 50)  # three rows a slice
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, requires_grad=True)
    ids = torch.randint(50, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator)
    logp, spread = chosen_logprobs(hidden, head, ids, temperature)
    logits = hidden @ head.T
    expected = token_logprobs(logits, ids, temperature)
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(spread, entropy(logits.detach() / temperature))
    assert not spread.requires_grad
    ours = torch.autograd.grad((logp * weights).sum(), [hidden, head])
    theirs = torch.autograd.grad((expected * weights).sum(), [hidden, head])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 7])
def test_normalisers_in_slices_equal_those_of_all_logits(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solon.training.head._LOGITS_CPU", 3 * 50)
    generator = torch.Generator().manual_seed(rows)
    hidden, head = 30 * torch.randn(rows, 8, generator=generator), torch.randn(50, 8, generator=generator)
    expected = (hidden @ head.T).logsumexp(-1)  # logits of a hundred: exp of them alone would overflow
    torch.testing.assert_close(log_normalisers(hidden, head), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_in_bfloat16_the_logits_that_count_are_not_rounded(temperature: float) -> None:
    """Logits around 25, which bfloat16 rounds to an eighth; the reference is float32 from the same states."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 64, generator=generator).bfloat16()
    head = torch.randn(1000, 64, generator=generator).bfloat16()
    logits = hidden.float() @ head.float().T
    ids = torch.where(torch.arange(200) % 2 == 0, logits.argmax(-1), logits.topk(3).indices[:, 2])
    exact = (logits / temperature).log_softmax(-1)[torch.arange(200), ids]
    found, _ = chosen_logprobs(hidden, head, ids, temperature)
    assert (found - exact).abs().max() < 0.05
    assert (found - exact).abs().mean() < 6e-3
    assert (found <= 0).all()
    assert (log_normalisers(hidden, head) - logits.logsumexp(-1)).abs().mean() < 6e-3


def test_the_head_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        chosen_logprobs(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), 0.0)


def test_two_adapters_train_only_those_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny_model_folder))
    model = add_adapter(load_model(source, "cpu", torch.float32), Lora(rank=2, alpha=4), 0, "one")
    add_adapter(model, Lora(rank=2, alpha=4), 0, "two")
    train_only(model, "two")
    assert trainable(model)
    assert all(".two." in name for name in trainable(model))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_adapter(model, tmp_path, "three")


def test_a_single_row_shares_nothing(made: Actors) -> None:
    alone = made.policy.actor.speak([EPISODES[0]], 1.0).logp_N
    among = made.policy.actor.speak(EPISODES, 1.0).logp_N[:2]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-5)
    assert len(HEADER) > 8
