"""Shared starts and repeated prompts are computed once, with the same result as computed alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from solon.engines.base import GenerateRequest, Message, completions
from solon.engines.local import LocalEngine
from solon.engines.prefix import common_start, lay_out, prefill
from solon.settings import Sampling

_ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5)


def test_layout_by_hand() -> None:
    layout = lay_out([[1, 2, 3, 4], [1, 2, 9]], pad=0)
    assert layout.shared == 2
    assert layout.ids_BT.tolist() == [[1, 2, 3, 4], [1, 2, 0, 9]]
    assert layout.mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]


@given(_ROWS)
def test_masked_layout_gives_the_rows_back(rows: list[list[int]]) -> None:
    layout = lay_out(rows, pad=7)
    assert layout.shared == common_start(rows)
    for row, ids, mask in zip(rows, layout.ids_BT, layout.mask_BT, strict=True):
        assert ids[mask.bool()].tolist() == row
        assert mask[-1] == 1
        assert layout.shared < len(row)


def _plain_logits(engine: LocalEngine, row: tuple[int, ...]) -> torch.Tensor:
    return engine.model(input_ids=torch.tensor([row])).logits[0, -1]


@torch.inference_mode()
def test_cache_gives_the_logits_of_a_plain_forward(tiny_engine: LocalEngine) -> None:
    rows = [(5, 6, 7, 8, 9), (5, 6, 7, 11), (5, 6, 7, 8, 9), (5, 6, 7, 20, 21, 22, 23)]
    filled = prefill(tiny_engine.model, rows, pad=2, room=4, apart=False, together=2048)
    layout, cache = filled.layout, filled.cache
    start = cache.get_seq_length()
    assert start == layout.ids_BT.shape[1] - 1
    positions = layout.mask_BT.cumsum(1) - 1
    out = tiny_engine.model(
        input_ids=layout.ids_BT[:, start:],
        attention_mask=layout.mask_BT,
        position_ids=positions[:, start:],
        past_key_values=cache,
    )
    for row, logits in zip(rows, out.logits[:, -1], strict=True):
        torch.testing.assert_close(logits, _plain_logits(tiny_engine, row), atol=1e-4, rtol=1e-4)


def test_shared_work_changes_no_sample(tiny_engine: LocalEngine) -> None:
    """Prompts with a common start, one of them asked three times: each as when asked alone."""
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9)
    start = (Message("user", "a long common start " * 4), Message("assistant", "yes"))
    texts = ["short", "a rather longer ending of the prompt", "short", "short"]
    requests = [
        GenerateRequest((*start, Message("user", text)), sampling, seed) for seed, text in enumerate(texts)
    ]
    together = completions(tiny_engine, requests)
    alone = [completions(tiny_engine, [request])[0] for request in requests]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together}) == 4
