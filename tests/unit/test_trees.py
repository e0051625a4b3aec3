"""Trees of rows with a common start: exact packing, and the same numbers as one row at a time."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig

from solon.engines.base import Message, ScoreRequest, scores, user
from solon.engines.local import LocalEngine
from solon.engines.trees import Tree, common_start, plant

rows_of_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=24), min_size=1, max_size=12)


def _packed(tree: Tree) -> list[tuple[int, ...]]:
    return [tuple(tree.ids[node] for node in path) for path in tree.paths]


@given(rows_of_tokens, st.integers(1, 60), st.booleans())
def test_every_row_is_planted_once_and_whole(rows: list[list[int]], most: int, share: bool) -> None:
    trees = plant(rows, most, share)
    assert sorted(i for tree in trees for i in tree.rows) == list(range(len(rows)))
    for tree in trees:
        for index, ids, path in zip(tree.rows, _packed(tree), tree.paths, strict=True):
            assert ids == tuple(rows[index])
            assert [tree.depths[node] for node in path] == list(range(len(ids)))
        assert len(tree.ids) <= max(most, *(len(rows[i]) for i in tree.rows))
        assert len(tree.rows) == 1 or share


@given(rows_of_tokens)
def test_a_node_sees_its_own_row_up_to_itself_and_nothing_else(rows: list[list[int]]) -> None:
    for tree in plant(rows):
        seen = tree.sees()
        for path in tree.paths:
            for place, node in enumerate(path):
                assert seen[node].nonzero().flatten().tolist() == sorted(path[: place + 1])


def test_a_common_start_is_one_chain_of_nodes() -> None:
    """Ten common tokens, tails of 2 and 3: 15 nodes for 25 tokens."""
    stem = list(range(10))
    (tree,) = plant([[*stem, 20, 21], [*stem, 30, 31, 32]])
    assert len(tree.ids) == 15
    assert tree.paths[0][:10] == tree.paths[1][:10]
    assert common_start([tree], 99) == 10
    assert common_start([tree], 9) == 9


def test_unlike_rows_share_nothing() -> None:
    trees = plant([[1] * 4 + [2] * 40, [1] * 4 + [3] * 40])
    assert [len(tree.rows) for tree in trees] == [1, 1]
    assert common_start(trees, 99) == 0


def _requests() -> list[ScoreRequest]:
    """Two pairs x two orders x four questions x two options: deep trees, some rows twice."""
    shown = (Message("user", "Which is kinder, bread or stone? " * 3), Message("assistant", "(A)"))
    pairs = itertools.product(("mend a clock", "burn it"), ("first", "second"))
    stems = [f"Answer (A): {a}. Answer (B): {b} answer of some length. " for a, b in pairs]
    asked = [f"{stem} Which is {word}?" for stem in stems for word in ("kinder", "safer", "wiser", "safer")]
    return [
        ScoreRequest((*shown, *user(text)), option)
        for text, option in itertools.product(asked, ("(A)", "(B)"))
    ]


@torch.inference_mode()
@pytest.mark.parametrize("batch_tokens", [1, 200, 700, 8192])
def test_scores_of_trees_equal_a_forward_pass_a_row(tiny_engine: LocalEngine, batch_tokens: int) -> None:
    engine = LocalEngine(tiny_engine.model, tiny_engine.tokenizer, "tiny", batch_tokens)
    requests = _requests()
    for request, score in zip(requests, scores(engine, requests), strict=True):
        turns = [{"role": m.role, "content": m.content} for m in request.conversation]
        prompt = engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = engine.tokenizer(request.continuation, add_special_tokens=False)["input_ids"]
        ids = [*prompt, *answer]
        logp = torch.log_softmax(engine.model(torch.tensor([ids])).logits[0].float(), -1)
        expected = [float(logp[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)


@torch.inference_mode()
@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)))
def test_scores_do_not_depend_on_the_order(tiny_engine: LocalEngine, order: list[int]) -> None:
    requests = _requests()[:12]
    plain = [score.total for score in scores(tiny_engine, requests)]
    mixed = [score.total for score in scores(tiny_engine, [requests[i] for i in order])]
    np.testing.assert_allclose(mixed, [plain[i] for i in order], atol=1e-6)


def test_a_window_of_attention_forbids_trees(tiny_engine: LocalEngine) -> None:
    from solon.engines.hooks import shares_starts

    config = tiny_engine.model.config
    assert shares_starts(tiny_engine.model)
    config.layer_types = ["sliding_attention", "full_attention"]
    try:
        assert not shares_starts(tiny_engine.model)
    finally:
        del config.layer_types
    config.alibi = True
    try:
        assert not shares_starts(tiny_engine.model), "distances by column"
    finally:
        del config.alibi


def test_a_model_that_takes_no_positions_forbids_trees() -> None:
    config = BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=16)
    from solon.engines.hooks import shares_starts

    assert not shares_starts(AutoModelForCausalLM.from_config(config))
