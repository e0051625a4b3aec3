"""Models that a shared start, a mask or a head would wrong, were they taken for Llamas: tiny ones.

Windows count columns, recurrences carry a state from one token to the next, and some heads change their
logits.
"""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from solon.engines.base import GenerateRequest, ScoreRequest, completions, scores, user
from solon.engines.decode import finds_starts
from solon.engines.hooks import plain_head
from solon.engines.local import LocalEngine
from solon.settings import Sampling
from tests.tiny import build_tokenizer

TOKENIZER = build_tokenizer()
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: dict[str, Any] = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8}
FAMILIES: dict[str, PreTrainedConfig] = {
    "all see all": LlamaConfig(**SHAPE),
    "a window in all blocks": MistralConfig(**SHAPE, sliding_window=12),
    "a window in some, and soft caps": Gemma3TextConfig(
        **SHAPE,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
    ),
    "convolutions": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]),
    "a linear recurrence": Qwen3NextConfig(
        **SHAPE, **LINEAR, num_experts=0, layer_types=["linear_attention", "full_attention"]
    ),
    "both in each block, and a multiplied head": FalconH1Config(**SHAPE, **MAMBA, lm_head_multiplier=0.5),
}
TEXTS = [
    "Why?",
    "Please explain how to bake bread, mend a clock, read a map or build a bridge.",
    "Say why.",
    "Why?",
]


def _engine(name: str) -> LocalEngine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[name]).float().eval()
    return LocalEngine(model, TOKENIZER, name)


def _alone(engine: LocalEngine, prompt: list[int], most: int) -> list[int]:
    """Greedy, token by token, the whole text read anew for each, without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most and not (
        len(ids) > len(prompt) and ids[-1] == TOKENIZER.eos_token_id
    ):
        ids.append(int(engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_prompts_of_all_lengths_are_answered_together_as_alone(name: str) -> None:
    engine, sampling = _engine(name), Sampling(max_tokens=8, temperature=0.0)
    found = completions(engine, [GenerateRequest(user(text), sampling, 0) for text in TEXTS])
    for text, done in zip(TEXTS, found, strict=True):
        ids = TOKENIZER.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        assert list(done.token_ids) == _alone(engine, ids, 8)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_answers_are_scored_together_as_by_the_whole_model(name: str) -> None:
    engine = _engine(name)
    requests = [
        ScoreRequest(user(text), answer) for text in TEXTS[:3] for answer in ("I cannot", "Bread, then")
    ]
    for request, score in zip(requests, scores(engine, requests), strict=True):
        turns = [{"role": m.role, "content": m.content} for m in request.conversation]
        prompt = TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        ids = [*prompt, *score.token_ids]
        logp = engine.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected = [float(logp[len(prompt) - 1 + k, token]) for k, token in enumerate(score.token_ids)]
        assert score.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_changes_its_logits_is_not_plain(name: str) -> None:
    model = _engine(name).model
    head = plain_head(model)
    if "cap" in name or "multiplied" in name:
        assert head is None
    else:
        assert head is model.get_output_embeddings().weight


@pytest.mark.parametrize("name", FAMILIES)
def test_only_a_model_whose_blocks_see_all_keeps_a_start_apart(name: str) -> None:
    assert finds_starts(_engine(name).model) == (name == "all see all")
