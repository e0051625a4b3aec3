"""The engine on a server: options read from top log-probabilities, retries, refusals, judges over HTTP."""

import math
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.constitution import Principle
from solon.engines.base import (
    GenerateRequest,
    Message,
    OptionRequest,
    ScoreRequest,
    completions,
    scores,
    user,
)
from solon.engines.http import HttpEngine
from solon.engines.http_link import Link
from solon.engines.local import LocalEngine
from solon.engines.option_reading import TopLogprobs, read_options
from solon.errors import LogprobsUnavailableError, ProblemsError, RunError, UsageError
from solon.feedback.base import Question
from solon.feedback.chain_of_thought import ChainOfThoughtJudge, Thinking
from solon.feedback.choice import ChoiceJudge
from solon.feedback.demonstrated import Demonstrated
from solon.feedback.judging import asked_of
from solon.feedback.options import CHOICES
from solon.feedback.score import ScoreJudge
from solon.judge_settings import JudgeSettings
from solon.models import ModelSource
from solon.role_models import role_source
from solon.roles import Role
from solon.settings import Sampling
from solon.yamlfile import Document, validate
from tests.http_setup import http_engine
from tests.unit.chat_server import Answer, Asked, message, serving

PRINCIPLE = Principle(id="p", about="a", critique="c", revision="r", question="Which is kinder?")
QUESTION = Question(PRINCIPLE, "q", "kind", "rude")
NOTHING_SHOWN = Demonstrated((), (PRINCIPLE,), 0, 0)
ASKED = [OptionRequest(user("q"), "", CHOICES)]


def _engine(url: str, waited: list[float] | None = None) -> HttpEngine:
    return http_engine(url, pause=(waited if waited is not None else []).append)


# --- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "places",
    [
        [TopLogprobs("(A)", (("(A)", -0.5), ("(B)", -1.5), ("I", -2.0)))],
        [TopLogprobs("(", (("(", -0.1),)), TopLogprobs("A", (("A", -0.5), ("B", -1.5)))],
        [TopLogprobs(" (", ((" (", -0.1),)), TopLogprobs("A)", (("A)", -0.5), ("B)", -1.5)))],
        [TopLogprobs("\n", (("\n", -0.1),)), TopLogprobs("(A", (("(A", -0.5), ("(B", -1.5)))],
        # The reply goes astray, yet both options were among the likeliest at the place that decides.
        [TopLogprobs("Both", (("Both", -0.2), ("(A", -0.5), ("(B", -1.5)))],
    ],
)
def test_options_are_read_however_tokens_cut_them(places: list[TopLogprobs]) -> None:
    assert read_options(places, CHOICES) == pytest.approx((-0.5, -1.5))


def test_a_number_is_not_its_first_digit() -> None:
    place = TopLogprobs("10", (("10", -0.1), ("1", -3.0), ("2", -4.0)))
    assert read_options([place], ("1", "2")) == (-3.0, -4.0)


def test_tokens_that_mean_the_same_option_are_added_up() -> None:
    top = (("(A)", math.log(0.25)), (" (A", math.log(0.25)), ("(B)", math.log(0.125)))
    read = read_options([TopLogprobs("(A)", top)], CHOICES)
    assert read == pytest.approx((math.log(0.5), math.log(0.125)))


@pytest.mark.parametrize(
    "places",
    [
        [],
        [TopLogprobs("(A)", (("(A)", -0.5),))],
        [TopLogprobs("Both", (("Both", -0.5),))],
        [TopLogprobs("(", (("(", -0.1),))],
        [TopLogprobs("(A)", (("(A)", -0.5), ("(B)", -math.inf)))],
        # What begins an option here mostly leaves open which: the rest says nothing.
        [TopLogprobs("The", (("The", -0.5), ("(", -1.0), ("(A)", -9.0), ("(B)", -8.0)))],
    ],
)
def test_an_option_that_is_not_told_is_never_made_up(places: list[TopLogprobs]) -> None:
    assert read_options(places, CHOICES) is None


@given(st.lists(st.tuples(st.text(max_size=4), st.floats(-20, 0)), max_size=8), st.text(max_size=4))
def test_what_is_read_is_a_mass_of_each_option_or_nothing(top: list[tuple[str, float]], token: str) -> None:
    read = read_options([TopLogprobs(token, tuple(top))], CHOICES)
    assert read is None or (len(read) == 2 and all(math.isfinite(logp) for logp in read))


# --- the wire -----------------------------------------------------------------------------------------


def test_texts_come_in_the_order_of_the_requests_and_are_counted() -> None:
    def answer(asked: Asked) -> Answer:
        assert asked.path == "/v1/chat/completions"
        return Answer(message(" " + asked.body["messages"][0]["content"] + "! ", finish="length"))

    sampling = Sampling(max_tokens=9, temperature=0.5, top_p=0.9)
    with serving(answer) as one, serving(answer) as two:
        engine = http_engine(one.url, two.url)
        done = completions(engine, [GenerateRequest(user(str(i)), sampling, i) for i in range(9)])
    assert [completion.text for completion in done] == [f"{i}!" for i in range(9)]
    assert {completion.finish for completion in done} == {"length"}
    assert len(one.asked) + len(two.asked) == 9
    assert min(len(one.asked), len(two.asked)) >= 1
    assert (engine.tokens_read, engine.tokens_generated) == (63, 27)
    body = one.asked[0].body
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("m", 9, 0.5, 0.9)


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked: Answer(message("x"))) as server:
        engine = _engine(server.url)
        completions(engine, [GenerateRequest(user("q"), Sampling(), 0)])
        monkeypatch.setenv("SOLON_API_KEY", "s3cret")
        completions(engine, [GenerateRequest(user("q"), Sampling(), 0)])
    assert [asked.authorization for asked in server.asked] == [None, "Bearer s3cret"]
    assert "s3cret" not in repr([vars(engine), vars(engine._client)])


@pytest.mark.parametrize("key", ["s3cret\n", " s3cret "])
def test_the_key_is_in_no_message(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_API_KEY", key)
    with serving(lambda asked: Answer(f"{asked.authorization} is wrong", 401)) as server:
        with pytest.raises(RunError, match="Bearer … is wrong") as found:
            completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
        assert server.asked[0].authorization == "Bearer s3cret"
    assert "s3cret" not in str(found.value)
    monkeypatch.setenv("SOLON_API_KEY", "sécret")
    with pytest.raises(UsageError, match="characters that no key has"):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


@pytest.mark.parametrize(
    "fault", [Answer("down", 503), Answer("down", 500), Answer('{"choices": [', 200), Answer("[]", 200)]
)
def test_a_broken_server_is_asked_again_after_growing_pauses(fault: Answer) -> None:
    answers = iter([fault, fault, Answer(message("at last"))])
    waited: list[float] = []
    with serving(lambda asked: next(answers)) as server:
        [done] = completions(_engine(server.url, waited), [GenerateRequest(user("q"), Sampling(), 0)])
    assert done.text == "at last"
    assert 0.25 <= waited[0] <= 0.5 <= waited[1] <= 1.0


@pytest.mark.parametrize(
    ("header", "least"), [({"Retry-After": "0.1"}, 0.2), ({"Retry-After": "-1"}, 0.5), ({}, 0.5)]
)
def test_a_busy_server_is_asked_again_when_it_says_so(header: dict[str, str], least: float) -> None:
    busy = Answer("busy", 429, header)
    answers = iter([busy, busy, Answer(message("at last"))])
    waited: list[float] = []
    start = time.monotonic()
    with serving(lambda asked: next(answers)) as server:
        [done] = completions(_engine(server.url, waited), [GenerateRequest(user("q"), Sampling(), 0)])
    assert done.text == "at last"
    assert time.monotonic() - start >= least
    assert waited == []


def test_a_server_that_stays_down_is_named() -> None:
    with serving(lambda asked: Answer("down", 500)) as server:
        engine = _engine(server.url)
        with pytest.raises(
            RunError, match=r"no usable answer in 8 attempts: http://127\.0\.0\.1.*status 500: down"
        ):
            completions(engine, [GenerateRequest(user("q"), Sampling(), 0)])
    with pytest.raises(RunError, match=r"127\.0\.0\.1.*no server answers there.*judge\.endpoints"):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


@pytest.mark.parametrize(("status", "text"), [(404, "no model m"), (401, "no key"), (400, "too long")])
def test_a_refusal_is_not_asked_again(status: int, text: str) -> None:
    with serving(lambda asked: Answer(text, status)) as server:
        with pytest.raises(RunError, match=f"refused, http://127.*status {status}: {text}"):
            completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
        assert len(server.asked) == 1


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": "x"}]}])
def test_a_server_of_another_kind_is_named(body: dict[str, Any]) -> None:
    with (
        serving(lambda asked: Answer(body)) as server,
        pytest.raises(RunError, match=r"it holds no (message|choice)"),
    ):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


@pytest.mark.parametrize(
    ("told", "finish"),
    [("stop", "stop"), ("eos", "stop"), ("length", "length"), ("content_filter", "length")],
)
def test_only_a_text_that_ended_by_itself_has_stopped(told: str, finish: str) -> None:
    with serving(lambda asked: Answer(message("x", finish=told))) as server:
        [done] = completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
    assert done.finish == finish


def test_a_text_that_was_broken_off_is_asked_for_again() -> None:
    answers = iter([Answer(message("x", finish="abort")), Answer(message("whole"))])
    with serving(lambda asked: next(answers)) as server:
        [done] = completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
    assert done.text == "whole"


def test_log_probabilities_that_a_server_lacks_are_not_asked_for_twice() -> None:
    with serving(lambda asked: Answer(message("(A)"))) as server:
        engine = _engine(server.url)
        for _ in range(3):
            with pytest.raises(LogprobsUnavailableError, match="returns no log-probabilities"):
                engine.option_logprobs(ASKED)
    assert len(server.asked) == 3, "three times within the first call, which may be accidents"


def test_a_server_for_base_models_is_told_from_one_without_the_model() -> None:
    words = "default chat template is no longer allowed, so you must provide a chat template"
    with (
        serving(lambda asked: Answer(words, 400)) as server,
        pytest.raises(RunError, match=r"set judge\.http\.interface=completions"),
    ):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
    with (
        serving(lambda asked: Answer("Not Found", 404)) as server,
        pytest.raises(RunError, match=r"judge\.endpoints: most servers' addresses end in /v1"),
    ):
        completions(_engine(server.url.removesuffix("/v1")), [GenerateRequest(user("q"), Sampling(), 0)])


def test_a_server_that_never_answers_in_time_has_its_settings_named() -> None:
    with (
        serving(lambda asked: Answer("too slow", 408)) as server,
        pytest.raises(RunError, match=r"408: too slow\. Raise judge\.http\.timeout, or lower judge\.http\."),
    ):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
    assert len(server.asked) == 8


def test_a_server_that_is_slow_to_list_its_models_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    get = httpx2.Client.get

    def slow(client: httpx2.Client, url: str, **more: Any) -> httpx2.Response:
        if url.endswith("/models"):
            raise httpx2.ReadTimeout("ten seconds have passed")
        return get(client, url, **more)

    monkeypatch.setattr(httpx2.Client, "get", slow)
    with serving(lambda asked: Answer(message("x"))) as server:
        assert len(completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])) == 1


def test_a_refusal_that_speaks_of_the_model_is_not_put_down_to_its_name() -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model."
    for served, fix in (
        (["other", "more"], "the server has other, more"),
        (["m", "other"], "what the server can"),
    ):
        with (
            serving(lambda asked: Answer(words, 400), models=served) as server,
            pytest.raises(RunError, match=fix),
        ):
            completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


def test_half_a_character_in_a_reply_is_asked_again() -> None:
    replies = iter(["cut \ud83d", "whole"])
    with serving(lambda asked: Answer(message(next(replies)))) as server:
        [found] = completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])
    assert found.text == "whole"


def test_who_waits_for_a_silent_server_is_told_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    greeted: list[str] = []

    def silent(link: Link, url: str) -> str:
        greeted.append(url)
        time.sleep(0.05)
        return f"{url}: nothing"

    monkeypatch.setattr(Link, "_served", silent)
    engine = http_engine("http://127.0.0.1:9/v1", concurrency=16)
    requests = [GenerateRequest(user(str(i)), Sampling(), i) for i in range(40)]
    for times in (1, 2):  # New work asks anew
        with pytest.raises(RunError, match="no server answers there"):
            completions(engine, requests)
        assert len(greeted) == times


def test_a_key_is_no_setting_and_is_not_repeated() -> None:
    for wrong in (
        {"api_key_env": "sk-s3cret"},
        {"endpoints": ["http://me:s3cret@host/v1"], "engine": "http"},
    ):
        with pytest.raises(ProblemsError) as found:
            validate(Document("r.yaml", wrong, {}), Role)
        assert "s3cret" not in str(found.value)


def test_addresses_are_checked() -> None:
    for endpoints in ([], ["127.0.0.1:8000"], ["http://127.0.0.1:80OO/v1"], ["http://"]):
        with pytest.raises(UsageError, match="Give addresses such as http"):
            http_engine(*endpoints)


# --- log-probabilities of wrong texts -----------------------------------------------------------------


def _vllm(engine: LocalEngine) -> Callable[[Asked], Answer]:
    """Answers `prompt_logprobs` in vLLM's form, computed by a plain forward of the engine's model."""

    def answer(asked: Asked) -> Answer:
        body = asked.body
        assert body["prompt_logprobs"] == 0
        ids = engine.tokenizer.apply_chat_template(
            body["messages"],
            add_generation_prompt=body["add_generation_prompt"],
            continue_final_message=body.get("continue_final_message", False),
            return_dict=False,
        )
        with torch.inference_mode():
            logp = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows: list[dict[str, Any] | None] = [None]
        rows += [
            {str(token): {"logprob": float(logp[place, token]), "rank": 1, "decoded_token": "?"}}
            for place, token in enumerate(ids[1:])
        ]
        return Answer({**message("x"), "prompt_logprobs": rows})

    return answer


def test_scores_over_http_are_those_of_the_local_model(tiny_engine: LocalEngine) -> None:
    talk = (Message("user", "Who are you?"), Message("assistant", "A model."), Message("user", "And they?"))
    requests = [ScoreRequest(user("Hi there"), "Hello you"), ScoreRequest(talk, "People")]
    with serving(_vllm(tiny_engine)) as server:
        found = scores(_engine(server.url), requests)
    for ours, local in zip(found, scores(tiny_engine, requests), strict=True):
        assert ours.logprobs == pytest.approx(local.logprobs, abs=1e-4)


def test_one_error_stops_what_has_not_begun() -> None:
    def answer(asked: Asked) -> Answer:
        wrong = asked.body["messages"][0]["content"] == "0"
        return Answer("no", 401) if wrong else Answer("busy", 503)

    with serving(answer) as server:
        engine = http_engine(server.url)
        with pytest.raises(RunError, match="refused"):
            completions(engine, [GenerateRequest(user(str(i)), Sampling(), 0) for i in range(200)])
        assert len(server.asked) < 100


def test_a_failing_server_leaves_the_work_to_the_others() -> None:
    with (
        serving(lambda asked: Answer("down", 500)) as down,
        serving(lambda asked: Answer(message("x"))) as up,
    ):
        engine = http_engine(down.url, up.url)
        done = completions(engine, [GenerateRequest(user("q"), Sampling(), i) for i in range(8)])
    assert [completion.text for completion in done] == ["x"] * 8


@pytest.mark.parametrize(
    "rows",
    [
        [None, None, {"5": {"logprob": -1.0}}],
        [None, {"5": {"logprob": math.nan}}],
        [None, {"5": {}}],
        [None, {}],
        [None, "x"],
    ],
)
def test_a_token_without_a_number_is_an_error(rows: list[Any]) -> None:
    with (
        serving(lambda asked: Answer({**message("x"), "prompt_logprobs": rows})) as server,
        pytest.raises(RunError, match="the answer has an unknown form"),
    ):
        scores(_engine(server.url), [ScoreRequest(user("q"), "a")])


def test_a_template_that_writes_a_begun_answer_otherwise_is_named() -> None:
    def answer(asked: Asked) -> Answer:
        begun = asked.body.get("continue_final_message", False)
        tokens = ["7", "8", "9"] if begun else ["7", "6"]
        return Answer({**message("x"), "prompt_logprobs": [None, *({t: {"logprob": -1.0}} for t in tokens)]})

    with serving(answer) as server, pytest.raises(RunError, match="cannot be told apart"):
        scores(_engine(server.url), [ScoreRequest(user("q"), "a")])


@pytest.mark.parametrize("name", ["prompt_logprobs", "continue_final_message", "add_generation_prompt"])
def test_a_server_that_refuses_prompt_logprobs_is_named(name: str) -> None:
    refusal = Answer({"error": {"message": f"Unknown parameter: '{name}'."}}, 400)
    with serving(lambda one: refusal) as server, pytest.raises(LogprobsUnavailableError, match="likelihood"):
        scores(_engine(server.url), [ScoreRequest(user("q"), "a")])


def test_half_a_character_at_the_end_of_a_cut_reply_is_left_out() -> None:
    for finish, text in (("length", "Bread"), ("stop", "Bread \ufffd")):
        with serving(lambda one, f=finish: Answer(message("Bread \ufffd", finish=f))) as server:  # type: ignore[misc]
            [done] = completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 1)])
        assert (done.text, done.finish) == (text, finish)


def test_a_server_without_prompt_logprobs_is_named() -> None:
    with (
        serving(lambda asked: Answer(message("x"))) as server,
        pytest.raises(LogprobsUnavailableError, match=r"127\.0\.0\.1.*prompt_logprobs"),
    ):
        scores(_engine(server.url), [ScoreRequest(user("q"), "a")])


# --- judges -------------------------------------------------------------------------------------------


def _prefers_kind(asked: Asked) -> Answer:
    """Chooses the kind answer with log-odds of 1, wherever it stands."""
    first = "Answer (A): kind" in asked.body["messages"][0]["content"]
    a, b = (-0.5, -1.5) if first else (-1.5, -0.5)
    letters = [("A", a), ("B", b)]
    return Answer(message("(A)", [("(", [("(", -0.1)]), ("A" if first else "B", letters)]))


def test_the_choice_judge_over_http() -> None:
    with serving(_prefers_kind) as server:
        [judgement] = ChoiceJudge(_engine(server.url), NOTHING_SHOWN).compare([QUESTION])
        body = server.asked[0].body
    assert judgement.p_a == pytest.approx(1 / (1 + math.exp(-1)))
    assert judgement.flipped is False
    assert (body["temperature"], body["logprobs"], body["top_logprobs"]) == (0, True, 20)


def test_options_that_are_not_told_leave_the_pair_unscored() -> None:
    with serving(lambda asked: Answer(message("Both", [("Both", [("Both", -0.1)])]))) as server:
        for judge in (ChoiceJudge(_engine(server.url), NOTHING_SHOWN), ScoreJudge(_engine(server.url))):
            [judgement] = judge.compare([QUESTION])
            assert judgement.p_a is None
            assert judgement.unscored == "the server does not tell the log-probability of every option"


def test_ratings_over_http() -> None:
    """Ratings 1 and 2 with probabilities 1/4 and 3/4, others e^-30: 1.75 for kind, 1.25 for rude."""
    quarter, rest = math.log(0.25), math.log(0.75)

    def answer(asked: Asked) -> Answer:
        kind = "Answer: kind" in asked.body["messages"][0]["content"]
        low, high = (quarter, rest) if kind else (rest, quarter)
        return Answer(message("2", [("2", [("1", low), ("2", high), *((d, -30.0) for d in "345")])]))

    with serving(answer) as server:
        [judgement] = ScoreJudge(_engine(server.url)).compare([QUESTION])
    assert judgement.p_a == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-6)


def test_without_logprobs_choice_is_an_error_and_thinking_reads_the_verdict() -> None:
    def answer(asked: Asked) -> Answer:
        first = "Answer (A): kind" in asked.body["messages"][0]["content"]
        return Answer(message(f"Kindness counts. The better answer is ({'A' if first else 'B'})."))

    thinking = Thinking(Sampling(max_tokens=20), samples=1, clamp=(0.4, 0.6), seed=0)
    with serving(answer) as server:
        with pytest.raises(LogprobsUnavailableError, match="returns no log-probabilities of m"):
            ChoiceJudge(_engine(server.url), NOTHING_SHOWN).compare([QUESTION])
        [judgement] = ChainOfThoughtJudge(_engine(server.url), thinking).compare([QUESTION])
    assert judgement.p_a == pytest.approx(0.6)


@pytest.mark.parametrize(
    "refusal", ["'logprobs' is not supported with this model", "top_logprobs must be <= 5"]
)
def test_a_server_that_refuses_logprobs_leaves_the_verdict_to_the_text(refusal: str) -> None:
    def answer(asked: Asked) -> Answer:
        if "logprobs" in asked.body:
            return Answer(refusal, 400)
        first = "Answer (A): kind" in asked.body["messages"][0]["content"]
        return Answer(message(f"The better answer is ({'A' if first else 'B'})."))

    thinking = Thinking(Sampling(max_tokens=20), samples=1, clamp=(0.4, 0.6), seed=0)
    with serving(answer) as server:
        [judgement] = ChainOfThoughtJudge(_engine(server.url), thinking).compare([QUESTION])
    assert judgement.p_a == pytest.approx(0.6)


def test_an_empty_reply_is_no_reasoning() -> None:
    thinking = Thinking(Sampling(max_tokens=20), samples=1, clamp=(0.4, 0.6), seed=0)
    with serving(lambda asked: Answer(message("", finish="length"))) as server:
        [judgement] = ChainOfThoughtJudge(_engine(server.url), thinking).compare([QUESTION])
    assert (judgement.p_a, judgement.unscored) == (None, "no verdict could be read in any reply")


def test_thinking_over_http_asks_for_the_option_in_a_turn_of_its_own() -> None:
    def answer(asked: Asked) -> Answer:
        if "logprobs" not in asked.body:
            return Answer(message("Kindness counts."))
        assert [turn["role"] for turn in asked.body["messages"]] == ["user", "assistant", "user"]
        assert asked.body["messages"][-1]["content"] == "Reply with (A) or (B) and nothing else."
        return _prefers_kind(asked)

    thinking = Thinking(Sampling(max_tokens=20), samples=1, clamp=(0.1, 0.9), seed=0)
    with serving(answer) as server:
        [judgement] = ChainOfThoughtJudge(_engine(server.url), thinking).compare([QUESTION])
    assert judgement.p_a == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("kind", ["linear_probe", "ensemble"])
def test_a_judge_by_name_that_needs_hidden_states_is_refused_on_a_server(kind: str) -> None:
    from solon.constitution import load_constitution

    server = ("engine=http", "endpoints=[http://127.0.0.1:1/v1]")
    with pytest.raises(UsageError, match=f"{kind} reads hidden states.*name another judge"):
        asked_of("m", kind, load_constitution("harmless"), "training", server)


def test_a_recipe_s_judge_is_one_that_its_engine_can_ask() -> None:
    where = {"engine": "http", "endpoints": ("http://127.0.0.1:1/v1",)}
    assert JudgeSettings.model_validate(where).kinds == ("choice",)
    both = JudgeSettings.model_validate({**where, "kind": ("linear_probe", "score", "ensemble")})
    assert (both.kinds, both.all_kinds) == (("score",), {"score"})
    other = JudgeSettings.model_validate({**where, "kind": "ensemble", "members": ("choice", "likelihood")})
    assert other.kinds == ("ensemble",)
    assert JudgeSettings().kinds == ("linear_probe",)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"engine": "http"}, "http needs `endpoints`"),
        ({"endpoints": ("http://127.0.0.1:1/v1",)}, "the engine is local"),
    ],
)
def test_endpoints_and_engine_belong_together(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Role.model_validate(settings)


# --- models by name -----------------------------------------------------------------------------------


def _never(asked: Asked) -> Answer:
    raise AssertionError("nothing is to be asked")


def test_the_one_model_of_a_server_needs_no_name() -> None:
    with serving(_never, ["large"]) as server:
        role = Role(engine="http", endpoints=(server.url,))
        assert role_source("judge", role, "embedded") == ModelSource("large", "", "http:large")
        assert role_source("judge", role, "embedded", fetch=False).identity == "http:"


@pytest.mark.parametrize(("models", "listed"), [(("a", "b"), "it has a, b"), ((), "it lists none")])
def test_several_models_need_one(models: tuple[str, ...], listed: str) -> None:
    with serving(_never, models) as server:
        role = Role(engine="http", endpoints=(server.url,))
        with pytest.raises(UsageError, match=rf"judge\.model: .*{listed}.*Set judge\.model"):
            role_source("judge", role, "embedded")


def test_a_server_that_lists_its_models_to_nobody_without_a_key_says_so() -> None:
    with serving(lambda one: Answer({}), listed=Answer("no", 401)) as server:
        role = Role(engine="http", endpoints=[server.url])
        with pytest.raises(UsageError, match="status 401: check the key in SOLON_API_KEY"):
            role_source("judge", role, "embedded")


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    wrong = Answer("The model `m` does not exist.", 404)
    with (
        serving(lambda asked: wrong, ["large", "small"]) as server,
        pytest.raises(RunError, match=r"127\.0\.0\.1.*404.*judge\.model: the server has large, small"),
    ):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


def test_a_text_beyond_the_context_is_told_as_such() -> None:
    words = "This model's maximum context length is 16 tokens."
    with (
        serving(lambda asked: Answer(words, 400)) as server,
        pytest.raises(RunError, match=r"127\.0\.0\.1.*do not fit the server's context: shorten"),
    ):
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(), 0)])


# --- the completions interface ------------------------------------------------------------------------


def _completes(engine: LocalEngine) -> Callable[[Asked], Answer]:
    """The legacy interface: goes on with a text, or echoes it with log-probabilities of a plain forward."""

    def answer(asked: Asked) -> Answer:
        prompt = asked.body["prompt"]
        choice: dict[str, Any] = {"text": f" {len(prompt)} ", "finish_reason": "stop"}
        if asked.body.get("echo"):
            ids = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logp = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            known = [float(logp[place, token]) for place, token in enumerate(ids[1:])]
            choice["logprobs"] = {
                "tokens": [*engine.tokenizer.convert_ids_to_tokens(ids), "new"],
                "token_logprobs": [None, *known, -9.0],
                "text_offset": [-1] * (len(ids) + 1),  # As SGLang does; vLLM counts its first token as well
            }
        return Answer({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})

    return answer


def test_a_base_model_goes_on_with_a_transcript(tiny_engine: LocalEngine) -> None:
    talk = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?"))
    with serving(_completes(tiny_engine)) as server:
        engine = http_engine(server.url, interface="completions")
        [done] = completions(engine, [GenerateRequest(talk, Sampling(), 0)])
        [asked] = server.asked
    assert asked.path == "/v1/completions"
    assert asked.body["prompt"] == "User:\nHi\n\nAssistant:\nYes?\n\nUser:\nWhy?\n\nAssistant:\n"
    assert asked.body["stop"] == ["\n\nUser:"]
    assert (done.text, done.prompt_tokens, done.new_tokens) == (str(len(asked.body["prompt"])), 5, 2)


def test_texts_are_scored_by_echo(tiny_engine: LocalEngine) -> None:
    with serving(_completes(tiny_engine)) as server:
        engine = http_engine(server.url, interface="completions")
        [score] = scores(engine, [ScoreRequest(user("Hi there"), "Hello you")])
    ids = tiny_engine.tokenizer("Hello you", add_special_tokens=False)["input_ids"]
    before = tiny_engine.tokenizer("User:\nHi there\n\nAssistant:\n", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logp = tiny_engine.model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
    expected = [float(logp[len(before) - 1 + k, token]) for k, token in enumerate(ids)]
    assert score.logprobs == pytest.approx(expected, abs=1e-4)
    assert score.prompt_tokens == len(before)


_NEW = {"tokens": ["x"], "token_logprobs": [-1.0]}


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"choices": [{"text": "x", "finish_reason": "stop"}]}),
        Answer(
            {"choices": [{"text": "x", "finish_reason": "stop", "logprobs": _NEW}]}
        ),  # `echo` is not known
        Answer("Only no echo is supported", 500),
        Answer("echo is not allowed", 400),
    ],
)
def test_a_server_without_echo_is_named(answer: Answer) -> None:
    with (
        serving(lambda asked: answer) as server,
        pytest.raises(LogprobsUnavailableError, match=r"127\.0\.0\.1.*`echo`"),
    ):
        scores(http_engine(server.url, interface="completions"), [ScoreRequest(user("q"), "a")])


def test_a_servers_chat_template_is_given_what_the_recipe_says() -> None:
    with serving(lambda asked: Answer(message("fine"))) as server:
        told = http_engine(server.url, template={"enable_thinking": False})
        completions(told, [GenerateRequest(user("q"), Sampling(max_tokens=3), 0)])
        completions(_engine(server.url), [GenerateRequest(user("q"), Sampling(max_tokens=3), 0)])
        first, second = (asked.body for asked in server.asked if asked.path.endswith("completions"))
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in second
    with pytest.raises(ValidationError, match="has no chat template"):
        http_engine(server.url, interface="completions", template={"enable_thinking": False})
