"""A start that rows share, kept once: the same attention, the same tokens, and less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solon.engines import prefix
from solon.engines.base import GenerateRequest, Message, completions
from solon.engines.decode import _Batch, decode, finds_starts
from solon.engines.local import LocalEngine
from solon.engines.prefix import prefill
from solon.engines.shared_start import (
    WORTH,
    KeptLayer,
    Start,
    _from_parts,
    keeps_apart,
    own_mask,
    start_apart,
)
from solon.models import load_model, resolve
from solon.settings import Sampling


def _plain(q_BHTD: Tensor, k_BHCD: Tensor, v_BHCD: Tensor, seen_BTC: Tensor) -> Tensor:
    """Attention written out, [B, T, H, D]."""
    scores = (q_BHTD @ k_BHCD.mT) * q_BHTD.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen_BTC[:, None], -torch.inf).softmax(-1)
    return (weights @ v_BHCD).transpose(1, 2)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 3),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    start=st.integers(1, 40),
    own=st.integers(1, 9),
    queries=st.integers(1, 9),
    pad=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_the_parts_make_the_whole(
    rows: int, key_heads: int, group: int, start: int, own: int, queries: int, pad: int, seed: int
) -> None:
    queries, pad = min(queries, own), min(pad, own - 1)
    torch.manual_seed(seed)
    heads, width = key_heads * group, 8
    q = torch.randn(rows, heads, queries, width)
    shared_k, shared_v = torch.randn(2, 1, key_heads, start, width)
    own_k, own_v = torch.randn(2, rows, key_heads, own, width)
    real_BC = torch.ones(rows, own, dtype=torch.bool)
    real_BC[0, :pad] = False
    mask = own_mask(real_BC, torch.float32)[:, :, own - queries :]
    found = _from_parts(q, own_k, own_v, Start(shared_k, shared_v), mask, width**-0.5)
    k, v = (
        torch.cat([one.expand(rows, -1, -1, -1), each], 2).repeat_interleave(group, 1)
        for one, each in ((shared_k, own_k), (shared_v, own_v))
    )
    seen = torch.cat([torch.ones(rows, queries, start, dtype=torch.bool), mask[:, 0] == 0], -1)
    torch.testing.assert_close(found, _plain(q, k, v, seen), atol=1e-5, rtol=1e-4)


ENDS: list[tuple[int, ...]] = [(50, 51), (60,), (50, 51), (70, 71, 72, 73)]
ROWS = [(*range(3, 40), *end) for end in ENDS]


@pytest.mark.parametrize(("enough", "passes"), [(1, 2), (256, 1)], ids=["by length", "together"])
@torch.inference_mode()
def test_logits_are_those_of_a_plain_forward(
    enough: int, passes: int, tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = prefix._group
    groups: list[int] = []

    def counting(model: Any, layout: prefix.Layout, *rest: Any) -> list[KeptLayer]:
        groups.append(len(layout.ids_BT))
        return computed(model, layout, *rest)

    monkeypatch.setattr(prefix, "_ENOUGH", enough)
    monkeypatch.setattr(prefix, "_group", counting)
    model = tiny_engine.model
    with start_apart(model):
        batch = _Batch(model, prefill(model, ROWS, 2, 4, True, 2048), 4)
        logits_BV = batch.prefill()
        assert batch._kept == 37
        assert batch.start_is_read
        # Rows of two, one and four tokens of their own, of which the last is not computed here
        assert len(groups) == passes
        again_BV = batch.forward(torch.tensor([5, 6, 7, 8]))
    for row, new, first, second in zip(ROWS, (5, 6, 7, 8), logits_BV, again_BV, strict=True):
        plain = model(input_ids=torch.tensor([[*row, new]])).logits[0]
        torch.testing.assert_close(first, plain[-2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(second, plain[-1], atol=1e-4, rtol=1e-4)


def test_the_start_is_kept_once(tiny_engine: LocalEngine) -> None:
    with torch.inference_mode(), start_apart(tiny_engine.model):
        apart = prefill(tiny_engine.model, ROWS, 2, 4, True, 2048)
        copied = prefill(tiny_engine.model, ROWS, 2, 4, False, 2048)
    assert (apart.kept, copied.kept) == (37, 0)
    layer: Any = apart.cache.layers[0]
    assert layer.start.keys.shape[0] == 1
    assert layer.get_seq_length() == copied.cache.layers[0].get_seq_length() == 40
    assert layer._buffers[0].shape[:3:2] == (4, 3 + 4)
    assert copied.cache.layers[0]._buffers[0].shape[:3:2] == (4, 40 + 4)


def test_a_model_that_changes_cached_keys_falls_back(
    tiny_model_folder: Path, tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the start lost on the way to the attention, answers would silently lack their examples."""
    model = load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)
    expected = decode(tiny_engine.model, ROWS, [2], 5, lambda logits, rows, number: logits.argmax(-1))
    update = KeptLayer.update

    def copying(self: KeptLayer, *given: Any) -> tuple[Tensor, Tensor]:
        keys, values = update(self, *given)
        return keys.clone(), values

    monkeypatch.setattr(KeptLayer, "update", copying)
    assert not finds_starts(model), "so that batches are planned for copies, too"
    found = decode(model, ROWS, [2], 5, lambda logits, rows, number: logits.argmax(-1))
    assert [one.ids for one in found] == [one.ids for one in expected]


def test_attention_is_as_before_afterwards(tiny_engine: LocalEngine) -> None:
    before = tiny_engine.model.config._attn_implementation
    assert keeps_apart(tiny_engine.model)
    with start_apart(tiny_engine.model):
        assert tiny_engine.model.config._attn_implementation != before
    assert tiny_engine.model.config._attn_implementation == before


def test_a_long_start_does_not_shrink_the_batches(tiny_engine: LocalEngine) -> None:
    """Six prompts of 200 tokens, all but the last few shared, fit where one copied prompt would."""
    start = (Message("user", "the same long start of everything " * 8), Message("assistant", "yes"))
    requests = [
        GenerateRequest((*start, Message("user", str(i))), Sampling(max_tokens=8, temperature=0.0), i)
        for i in range(6)
    ]
    engine = LocalEngine(tiny_engine.model, tiny_engine.tokenizer, "t", batch_tokens=256)
    assert engine.length(requests[0].conversation) > 2 * WORTH
    results = engine.generate(requests)
    next(results)
    assert engine.tokens_generated == sum(c.new_tokens for c in completions(tiny_engine, requests))
    results.close()  # type: ignore[attr-defined]


def test_prompts_of_a_batch_are_computed_a_few_at_a_time(
    tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve long prompts are one batch, and at most `batch_tokens` of them one pass."""
    start = (Message("user", "the same long start of everything " * 8), Message("assistant", "yes"))
    requests = [
        GenerateRequest((*start, Message("user", f"{i} " + "and more " * 20)), Sampling(max_tokens=8), i)
        for i in range(12)
    ]
    passes: list[int] = []
    computed = prefix._pass

    def counting(model: Any, cache: Any, ids_BT: Tensor, *rest: Tensor) -> None:
        passes.append(ids_BT.numel())
        computed(model, cache, ids_BT, *rest)

    expected = completions(tiny_engine, requests)
    monkeypatch.setattr(prefix, "_pass", counting)
    engine = LocalEngine(tiny_engine.model, tiny_engine.tokenizer, "t", batch_tokens=512)
    assert completions(engine, requests) == expected
    shared, *own = passes
    assert shared > WORTH, "one batch: the start is computed once"
    assert max(own) <= 512 < sum(own)
