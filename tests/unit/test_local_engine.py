"""The local engine on a tiny random model: seeds, batches, scores against a plain forward pass."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from solon.engines import decode
from solon.engines.base import START_TOKENS, GenerateRequest, Message, ScoreRequest, completions, scores, user
from solon.engines.local import LocalEngine
from solon.engines.sampling import Chooser
from solon.engines.turns import Answer, Turns
from solon.errors import RunError, UsageError
from solon.models import TRANSCRIPT
from solon.settings import Sampling
from solon.text import leading_sentences
from solon.training.encoding import Encoder
from tests.tiny import build_tokenizer

WARM = Sampling(max_tokens=12, temperature=1.0, top_p=0.95)
GREEDY = Sampling(max_tokens=12, temperature=0.0)
PROMPTS = ["Hi", "How do I mend a clock?", "Please explain " + "bread and maps " * 9, "Why?", "a b c d e f"]
SCORED = [
    ScoreRequest(user("How do I mend a clock?"), "Please read a map."),
    ScoreRequest((Message("system", "Be kind."), Message("user", "Hi")), "I cannot help"),
    ScoreRequest(user("a " * 60), " x"),
]


def requests(sampling: Sampling = WARM) -> list[GenerateRequest]:
    return [GenerateRequest(user(text), sampling, seed) for seed, text in enumerate(PROMPTS * 2)]


def engine_with(engine: LocalEngine, budget: int) -> LocalEngine:
    return LocalEngine(engine.model, engine.tokenizer, "tiny", budget)


def ids_of(engine: LocalEngine, request: ScoreRequest) -> tuple[list[int], int]:
    """All token ids of a request, and how many of them are the prompt, put together independently."""
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in request.conversation)
    prompt = engine.tokenizer(text + "<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    answer = engine.tokenizer(request.continuation, add_special_tokens=False)["input_ids"]
    return prompt + answer, len(prompt)


@pytest.mark.parametrize("sampling", [WARM, GREEDY, Sampling(max_tokens=12)], ids=str)
def test_generation_depends_on_neither_order_nor_batch(tiny_engine: LocalEngine, sampling: Sampling) -> None:
    asked = requests(sampling)
    together = completions(tiny_engine, asked)
    assert [completions(engine_with(tiny_engine, 1), [r])[0] for r in asked] == together
    order = random.Random(0).sample(range(len(asked)), len(asked))
    shuffled = completions(engine_with(tiny_engine, 150), [asked[i] for i in order])
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize("sampling", [WARM, GREEDY], ids=str)
def test_rows_are_chosen_for_as_if_together(
    sampling: Sampling, tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = completions(tiny_engine, requests(sampling))
    choose, counts = Chooser.__call__, set[int]()

    def counting(self: Chooser, logits_BV: torch.Tensor, rows_B: torch.Tensor, number: int) -> torch.Tensor:
        counts.add(len(logits_BV))
        return choose(self, logits_BV, rows_B, number)

    monkeypatch.setattr(Chooser, "__call__", counting)
    monkeypatch.setattr(decode, "_CHOSEN", 3)
    few = completions(tiny_engine, requests(sampling))
    assert max(counts) == 3
    assert few == together
    assert [c.logprobs for c in few] == [c.logprobs for c in together]


def test_seeds_decide(tiny_engine: LocalEngine) -> None:
    first, again, other = completions(tiny_engine, [GenerateRequest(user("Hi"), WARM, s) for s in (1, 1, 2)])
    assert first == again
    assert first.token_ids != other.token_ids


def test_a_row_whose_sentences_are_full_stops_and_nothing_else_changes(tiny_engine: LocalEngine) -> None:
    hot = Sampling(max_tokens=160, temperature=3.0)
    asked = [GenerateRequest(user("Why?"), hot, seed, (1, 2, None)[seed % 3]) for seed in range(48)]
    whole = completions(tiny_engine, [replace(request, sentences=None) for request in asked])
    stopped = completions(tiny_engine, asked)
    shorter = 0
    for request, all_, some in zip(asked, whole, stopped, strict=True):
        assert some.token_ids == all_.token_ids[: some.new_tokens]
        assert some.logprobs == pytest.approx(all_.logprobs[: some.new_tokens], abs=1e-4)
        if request.sentences is None:
            assert some == all_
            continue
        kept = leading_sentences(all_.text, request.sentences)
        assert leading_sentences(some.text, request.sentences) == kept
        if some.new_tokens < all_.new_tokens:
            assert some.finish == "length"
            shorter += 1
    assert shorter


def test_an_answer_in_a_plain_transcript_ends_where_the_next_question_begins(
    tiny_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TRANSCRIPT
    said = tokenizer("Bake it.\n\nUser:\nAnd then what do I do with all of the bread?")["input_ids"]

    class Saying:
        broken = False

        def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
            """Draws nothing."""

        def __call__(self, logits_BV: torch.Tensor, rows_B: torch.Tensor, number: int) -> torch.Tensor:
            return torch.full((len(rows_B),), said[number])

    monkeypatch.setattr("solon.engines.local.Chooser", Saying)
    engine = LocalEngine(tiny_engine.model, tokenizer, "base")
    [done] = completions(engine, [GenerateRequest(user("How?"), Sampling(max_tokens=len(said)), 0)])
    assert (done.text, done.finish) == ("Bake it.", "stop")
    assert tokenizer.decode(done.token_ids) == "Bake it.\n\nUser:"
    assert len(done.logprobs) == done.new_tokens == len(done.token_ids)
    assert engine.tokens_generated <= done.new_tokens + 3, "it is looked after every fourth token"


def test_half_a_character_at_the_end_of_a_cut_answer_is_left_out(tiny_engine: LocalEngine) -> None:
    turns = Turns(tiny_engine.tokenizer, "tiny", None)
    ids = tiny_engine.tokenizer("Bread 🍞")["input_ids"]
    assert turns.text(ids[:-1]) == "Bread \ufffd"
    assert turns.answer(ids[:-1], ended=False) == Answer("Bread", len(ids) - 1, "length")
    assert turns.answer(ids, ended=True) == Answer("Bread 🍞", len(ids), "stop")
    assert turns.answer(tiny_engine.tokenizer("A\n\nUser: B")["input_ids"], ended=True).text == "A\n\nUser: B"


def test_mixed_sampling_settings_come_back_in_order(tiny_engine: LocalEngine) -> None:
    mixed = [GenerateRequest(user("Hi"), s, 4) for s in (WARM, GREEDY, WARM)]
    done = completions(tiny_engine, mixed)
    assert done[0] == done[2] == completions(tiny_engine, mixed[:1])[0]
    assert done[1] == completions(tiny_engine, mixed[1:2])[0]


@torch.inference_mode()
def test_greedy_equals_a_plain_argmax_loop(tiny_engine: LocalEngine) -> None:
    (done,) = completions(tiny_engine, [GenerateRequest(user("Why?"), GREEDY, 0)])
    ids, _ = ids_of(tiny_engine, ScoreRequest(user("Why?"), ""))
    expected: list[int] = []
    for _ in range(GREEDY.max_tokens):
        expected.append(int(tiny_engine.model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        if expected[-1] == tiny_engine.tokenizer.eos_token_id:
            break
    assert list(done.token_ids) == expected
    assert done.prompt_tokens == len(ids)


def test_the_end_token_ends_and_is_kept(tiny_engine: LocalEngine) -> None:
    hot = Sampling(max_tokens=100, temperature=5.0)
    done = completions(tiny_engine, [GenerateRequest(user("Hi"), hot, seed) for seed in range(12)])
    end = tiny_engine.tokenizer.eos_token_id
    assert {c.finish for c in done} == {"stop", "length"}
    for completion in done:
        assert end not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == end) == (completion.finish == "stop")
        assert completion.finish == "stop" or len(completion.token_ids) == 100
        assert "<|im_end|>" not in completion.text


def test_the_models_own_generation_settings_do_not_interfere(tiny_engine: LocalEngine) -> None:
    expected = completions(tiny_engine, requests())
    model = copy.deepcopy(tiny_engine.model)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.suppress_tokens = list(range(3, 200))
    engine = LocalEngine(model, tiny_engine.tokenizer, "tiny")
    assert completions(engine, requests()) == expected
    assert model.generation_config.repetition_penalty == 5.0


def test_every_end_token_of_the_model_ends(tiny_engine: LocalEngine) -> None:
    (plain,) = completions(tiny_engine, [GenerateRequest(user("Hi"), WARM, 3)])
    model = copy.deepcopy(tiny_engine.model)
    model.generation_config.eos_token_id = [2, plain.token_ids[2]]
    other = LocalEngine(model, tiny_engine.tokenizer, "t")
    (ended,) = completions(other, [GenerateRequest(user("Hi"), WARM, 3)])
    assert ended.finish == "stop"
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(plain.token_ids[2]) + 1]


@torch.inference_mode()
def test_scores_equal_a_plain_forward_pass(tiny_engine: LocalEngine) -> None:
    for score, request in zip(scores(tiny_engine, SCORED), SCORED, strict=True):
        ids, start = ids_of(tiny_engine, request)
        logp = torch.log_softmax(tiny_engine.model(torch.tensor([ids])).logits[0].float(), -1)
        expected = [float(logp[i - 1, ids[i]]) for i in range(start, len(ids))]
        np.testing.assert_allclose(score.logprobs, expected, atol=2e-5)


def test_scores_are_those_of_the_sampled_distribution(tiny_engine: LocalEngine) -> None:
    """Sampled many times at T = 1, the shares of the first tokens are their scored probabilities."""
    asked, n, tokenizer = user("How do I mend a clock?"), 4000, tiny_engine.tokenizer
    texts = {i: tokenizer.decode([i]) for i in range(3, len(tokenizer))}
    texts = {i: t for i, t in texts.items() if tokenizer(t, add_special_tokens=False)["input_ids"] == [i]}
    found = scores(tiny_engine, [ScoreRequest(asked, text) for text in texts.values()])
    expected = np.exp([score.total for score in found])
    one = Sampling(max_tokens=1)
    done = completions(tiny_engine, [GenerateRequest(asked, one, seed) for seed in range(n)])
    drawn = [completion.token_ids[0] for completion in done]
    shares = np.array([drawn.count(i) for i in texts]) / n
    spread = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(shares - expected) < 5 * spread + 1 / n).all()
    assert np.abs(shares - expected.mean()).max() > 0.005  # the distribution is not flat


@torch.inference_mode()
@pytest.mark.parametrize(("layer", "block"), [(0.0, 0), (0.5, 1), (0.6, 1), (1.0, 2)])
def test_hidden_features_equal_a_plain_forward_pass(
    tiny_engine: LocalEngine, layer: float, block: int
) -> None:
    found = tiny_engine.hidden_features(SCORED, [layer, 1.0], ["mean", "last", "start"])
    assert found.shape == (len(SCORED), 2, 3, 64)
    for features, request in zip(found, SCORED, strict=True):
        ids, start = ids_of(tiny_engine, request)
        states = tiny_engine.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for kept, hidden in zip(features, (states[block][0, start:], states[-1][0, start:]), strict=True):
            np.testing.assert_allclose(kept[0], hidden.mean(0).numpy(), atol=2e-5)
            np.testing.assert_allclose(kept[1], hidden[-1].numpy(), atol=2e-5)
            np.testing.assert_allclose(kept[2], hidden[:START_TOKENS].mean(0).numpy(), atol=2e-5)


def test_reading_a_layer_leaves_no_hook_behind(tiny_engine: LocalEngine) -> None:
    before = scores(tiny_engine, SCORED)
    tiny_engine.hidden_features(SCORED, [0.0], ["mean"])
    assert scores(tiny_engine, SCORED) == before


def test_scores_depend_on_neither_order_nor_batch(tiny_engine: LocalEngine) -> None:
    together = [score.total for score in scores(tiny_engine, SCORED)]
    alone = [scores(engine_with(tiny_engine, 1), [r])[0].total for r in reversed(SCORED)]
    np.testing.assert_allclose(alone[::-1], together, atol=1e-4)


def test_tokens_are_counted(tiny_engine: LocalEngine) -> None:
    engine = engine_with(tiny_engine, 100)
    done = completions(engine, requests())
    assert engine.tokens_generated == sum(len(c.token_ids) for c in done)
    assert engine.tokens_read == sum(c.prompt_tokens for c in done)
    assert [c.new_tokens for c in done] == [len(c.token_ids) for c in done]
    scores(engine, SCORED)
    read = sum(len(ids_of(engine, r)[0]) for r in SCORED)
    assert engine.tokens_read == sum(c.prompt_tokens for c in done) + read


def test_results_come_batch_by_batch(tiny_engine: LocalEngine) -> None:
    engine = engine_with(tiny_engine, 100)
    results = engine.generate(requests())
    first = next(results)
    assert 0 < engine.tokens_generated < sum(c.new_tokens for c in completions(tiny_engine, requests()))
    assert sorted(c.index for c in (first, *results)) == list(range(len(requests())))
    assert sorted(s.index for s in engine.score(SCORED)) == list(range(len(SCORED)))


def test_logprobs_of_new_tokens_are_those_of_scoring(tiny_engine: LocalEngine) -> None:
    """Under the model itself, whatever temperature and top-p they were sampled with."""
    sampling = Sampling(max_tokens=12, temperature=0.7, top_p=0.9)
    asked = [GenerateRequest(user(text), sampling, i) for i, text in enumerate(("Hi", "Who are you today?"))]
    for request, done in zip(asked, completions(tiny_engine, asked), strict=True):
        prompt = tiny_engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": request.conversation[0].content}],
            add_generation_prompt=True,
            return_dict=False,
        )
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *done.token_ids]])
            logp_TV = tiny_engine.model(ids).logits[0].log_softmax(-1)
        expected = [float(logp_TV[len(prompt) - 1 + k, t]) for k, t in enumerate(done.token_ids)]
        assert done.logprobs == pytest.approx(expected, abs=1e-4)


def test_no_requests_no_results(tiny_engine: LocalEngine) -> None:
    assert completions(tiny_engine, []) == []
    assert scores(tiny_engine, []) == []
    assert tiny_engine.hidden_features([], [0.5], ["mean"]).shape == (0, 1, 1, 64)


def test_a_prompt_beyond_the_context_is_named(tiny_engine: LocalEngine) -> None:
    long = user("Tell me everything " + "word " * 1100)
    with pytest.raises(UsageError, match=r"Tell me everything word.*1024"):
        completions(tiny_engine, [GenerateRequest(long, WARM, 0)])
    with pytest.raises(UsageError, match=r"Tell me everything word.*1024"):
        scores(tiny_engine, [ScoreRequest(long, "yes")])


def test_an_empty_continuation_is_refused(tiny_engine: LocalEngine) -> None:
    with pytest.raises(RunError, match="empty continuation of “How do I”"):
        scores(tiny_engine, [ScoreRequest(user("How do I"), "")])
    with pytest.raises(RunError, match="empty continuation"):
        tiny_engine.hidden_features([ScoreRequest(user("How do I"), "")], [0.5], ["mean"])


def test_a_layer_outside_the_model_is_refused(tiny_engine: LocalEngine) -> None:
    with pytest.raises(UsageError, match="between 0"):
        tiny_engine.hidden_features(SCORED, [0.5, 14], ["mean"])


def test_a_template_that_refuses_a_role_is_named(tiny_engine: LocalEngine) -> None:
    tokenizer = copy.deepcopy(tiny_engine.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UsageError, match="no system role"):
        scores(LocalEngine(tiny_engine.model, tokenizer, "t"), SCORED)


def test_values_that_are_no_numbers_stop(tiny_model_folder: Path, tiny_engine: LocalEngine) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    engine = LocalEngine(model, tiny_engine.tokenizer, "broken")
    for call in (
        lambda: completions(engine, requests(WARM)),
        lambda: completions(engine, requests(GREEDY)),
        lambda: scores(engine, SCORED),
        lambda: engine.hidden_features(SCORED, [1.0], ["mean"]),
    ):
        with pytest.raises(RunError, match="broken computes values that are no numbers"):
            call()


def test_a_model_that_can_think_is_asked_not_to(tiny_engine: LocalEngine) -> None:
    """As Qwen3's template: unless it is told otherwise, thoughts would fill the few tokens of an answer."""
    tokenizer = copy.deepcopy(tiny_engine.tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}{{ '' if enable_thinking is false else ' think' }}"
    plain = tuple(tokenizer("Why?")["input_ids"])
    assert Encoder(tokenizer).prompt("Why?") == plain
    assert Turns(tokenizer, "t", None).ids(user("Why?")) == plain
