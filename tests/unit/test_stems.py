"""Blocks below a policy's first adapter are read once a step, and nothing else is different."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from solon.engines.hooks import blocks
from solon.models import load_model, load_tokenizer, resolve
from solon.training.adapters import add_adapter, save_merged, trainable
from solon.training.batching import mask_of
from solon.training.policy import POLICY, REWARD, Actors
from solon.training.ppo_trainer import PPOTrainer
from solon.training.rollout import answer_lengths, evaluate
from solon.training.stems import Stems, depth_below
from solon.training_settings import Lora
from tests.ppo_setup import EPISODES, PLAN, actors, odd_shares, settings, stir

UPPER = {"lora": {"rank": 4, "alpha": 8, "layers": 0.5}}


@pytest.fixture
def made(tiny_model_folder: Path, tmp_path: Path) -> Actors:
    found = actors(tiny_model_folder, tmp_path, settings(**UPPER))
    stir(found.policy, 3)
    return found


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """Adds an entry for each time that the module's own work is done."""
    runs: list[int] = []
    handle = module.register_forward_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()


def _gradients(made: Actors) -> tuple[Tensor, dict[str, Tensor]]:
    new, moved = made.policy(EPISODES), trainable(made.policy)
    weights = torch.linspace(-1, 2, len(new.logp_N))
    loss = (weights * (new.logp_N + 0.3 * new.value_N)).sum()
    grads = torch.autograd.grad(loss, list(moved.values()))
    return new.logp_N.detach(), dict(zip(moved, grads, strict=True))


def test_only_the_upper_half_has_adapters(made: Actors) -> None:
    adapted = [n for n in trainable(made.policy) if ".lora_" in n]
    assert adapted
    assert all(".layers.1." in name for name in adapted)
    assert len(adapted) == 2 * 7, "two matrices for each of a block's seven linear layers"
    assert depth_below(made.policy.trunk, POLICY) == 1
    assert depth_below(made.policy.trunk, REWARD) == 0
    assert depth_below(made.policy.trunk, None) == 2


def test_held_rows_give_the_same_values_and_gradients_without_the_lower_block(made: Actors) -> None:
    torch.nn.init.normal_(made.policy.value_head.weight, generator=torch.Generator().manual_seed(5))
    logp_N, grads = _gradients(made)
    reference_N = made.policy.reference_logprobs(EPISODES)
    lower = blocks(made.policy.trunk)[0].self_attn
    with counted(lower) as runs, made.policy.holding(EPISODES):
        assert len(runs) == 1
        held_N, held = _gradients(made)
        held_reference_N = made.policy.reference_logprobs(EPISODES)
        assert len(runs) == 1, "the lower block was read again"
    torch.testing.assert_close(held_N, logp_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(held_reference_N, reference_N, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(held[name], grad, atol=1e-4, rtol=1e-4)


def test_nothing_is_held_afterwards_and_other_rows_go_the_whole_way(made: Actors) -> None:
    other = [replace(EPISODES[0], answer=(30, 31))]
    expected = made.policy.reference_logprobs(other)
    lower = blocks(made.policy.trunk)[0].self_attn
    with made.policy.holding(EPISODES), counted(lower) as runs:
        assert torch.equal(made.policy.reference_logprobs(other), expected)
        assert runs
    with counted(lower) as runs:
        made.policy.reference_logprobs(EPISODES)
        assert runs


def test_a_model_whose_adapter_reaches_further_down_reads_the_whole_way(made: Actors) -> None:
    expected = made.reward.score(EPISODES)
    assert made.reward.view.stems is None
    with made.policy.holding(EPISODES):
        assert torch.equal(made.reward.score(EPISODES), expected)


def test_a_step_learns_what_it_would_without_stems(tiny_model_folder: Path, tmp_path: Path) -> None:
    wanted = settings(**UPPER, steps=1, epochs=2, learning_rate=1e-2)
    learnt = []
    for depth in (1, 0):
        made = actors(tiny_model_folder, tmp_path, wanted)
        assert made.policy.actor.stems is not None
        assert made.policy.actor.stems.depth == 1
        made.policy.actor.stems.depth = depth
        trainer = PPOTrainer(made.policy, odd_shares, lambda step: EPISODES, wanted, 0)
        found = trainer.step(0).metrics
        assert found["ratio_error"] <= 1e-5
        learnt.append((trainer.optimiser.masters(), found))
    (held, figures), (plain, expected) = learnt
    for name, tensor in plain.items():
        torch.testing.assert_close(held[name], tensor, atol=2e-4, rtol=1e-3)
    assert figures["policy_loss"] == pytest.approx(expected["policy_loss"], abs=1e-4)


def test_a_rollout_reads_the_same_under_held_rows(made: Actors) -> None:
    scores_B = torch.zeros(4)
    plain = evaluate(made.policy, EPISODES, scores_B, PLAN[0])
    with made.policy.holding(EPISODES):
        held = evaluate(made.policy, EPISODES, scores_B, PLAN[0])
    mask_BT = mask_of(answer_lengths(EPISODES), 4)
    assert torch.equal(held.mask_BT, mask_BT)
    for name in ("logp_BT", "reference_BT", "value_BT", "entropy_BT"):
        torch.testing.assert_close(getattr(held, name), getattr(plain, name), atol=1e-5, rtol=1e-5)


def _gpt2() -> Any:
    """Adds positions to what it takes for embeddings."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64))


def test_a_model_that_changes_given_embeddings_is_read_whole() -> None:
    stems = Stems(_gpt2().eval(), 1)
    assert stems.depth == 0
    with stems.held([(1, 2, 3)]):
        assert not stems.covers([(1, 2, 3)])


def test_an_adapter_on_upper_blocks_is_merged_like_any_other(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = resolve(str(tiny_model_folder))
    model = add_adapter(load_model(source, "cpu", torch.float32), Lora(layers=0.5), 0, "default")
    stir(model, 1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    save_merged(model, load_tokenizer(source), tmp_path / "merged", torch.float32)
    merged = load_model(resolve(str(tmp_path / "merged")), "cpu", torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    before = load_model(source, "cpu", torch.float32).state_dict()
    changed = {n for n, t in merged.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(".layers.1." in name for name in changed)
