"""The engine on a server: options read from top log-probabilities, retries, refusals, judges over HTTP."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from solon.constitution import Principle
from solon.engines.base import GenerateRequest, Message, OptionRequest, ScoreRequest, user
from solon.engines.http import HttpEngine
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
from solon.settings import Sampling
from tests.unit.chat_server import Answer, Asked, message, serving

PRINCIPLE = Principle(id="p", about="a", critique="c", revision="r", question="Which is kinder?")
QUESTION = Question(PRINCIPLE, "q", "kind", "rude")
NOTHING_SHOWN = Demonstrated((), (PRINCIPLE,), 0, 0)
ASKED = [OptionRequest(user("q"), "", CHOICES)]


def _engine(url: str, waited: list[float] | None = None) -> HttpEngine:
    return HttpEngine([url], "m", pause=(waited if waited is not None else []).append)


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
        engine = HttpEngine([one.url, two.url], "m")
        done = engine.generate([GenerateRequest(user(str(i)), sampling, i) for i in range(9)])
    assert [completion.text for completion in done] == [f"{i}!" for i in range(9)]
    assert {completion.finish for completion in done} == {"length"}
    assert (len(one.asked), len(two.asked)) == (5, 4)
    assert (engine.tokens_read, engine.tokens_generated) == (63, 27)
    body = one.asked[0].body
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("m", 9, 0.5, 0.9)


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked: Answer(message("x"))) as server:
        engine = _engine(server.url)
        engine.generate([GenerateRequest(user("q"), Sampling(), 0)])
        monkeypatch.setenv("SOLON_API_KEY", "s3cret")
        engine.generate([GenerateRequest(user("q"), Sampling(), 0)])
    assert [asked.authorization for asked in server.asked] == [None, "Bearer s3cret"]
    assert "s3cret" not in repr([vars(engine), vars(engine._client)])


@pytest.mark.parametrize("key", ["s3cret\n", " s3cret "])
def test_the_key_is_in_no_message(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_API_KEY", key)
    with serving(lambda asked: Answer(f"{asked.authorization} is wrong", 401)) as server:
        with pytest.raises(RunError, match="Bearer … is wrong") as found:
            _engine(server.url).generate([GenerateRequest(user("q"), Sampling(), 0)])
        assert server.asked[0].authorization == "Bearer s3cret"
    assert "s3cret" not in str(found.value)
    monkeypatch.setenv("SOLON_API_KEY", "sécret")
    with pytest.raises(UsageError, match="characters that no key has"):
        _engine(server.url).generate([GenerateRequest(user("q"), Sampling(), 0)])


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (Answer("busy", 429, {"Retry-After": "7"}), 7.0),
        (Answer("busy", 429, {"Retry-After": "9999"}), 60.0),
        (Answer("busy", 429, {"Retry-After": "-1"}), None),
        (Answer("down", 503), None),
        (Answer('{"choices": [', 200), None),
        (Answer("[]", 200), None),
    ],
)
def test_a_busy_or_broken_server_is_asked_again(fault: Answer, wait: float | None) -> None:
    answers = iter([fault, fault, Answer(message("at last"))])
    waited: list[float] = []
    with serving(lambda asked: next(answers)) as server:
        [done] = _engine(server.url, waited).generate([GenerateRequest(user("q"), Sampling(), 0)])
    assert done.text == "at last"
    if wait is not None:
        assert waited == [wait, wait]
    else:
        assert 0.25 <= waited[0] <= 0.5 <= waited[1] <= 1.0


def test_a_server_that_stays_down_is_named() -> None:
    with serving(lambda asked: Answer("down", 500)) as server:
        engine = _engine(server.url)
        with pytest.raises(
            RunError, match=r"no usable answer in 6 attempts: http://127\.0\.0\.1.*status 500: down"
        ):
            engine.generate([GenerateRequest(user("q"), Sampling(), 0)])
    with pytest.raises(RunError, match="Check that the server is up"):
        engine.generate([GenerateRequest(user("q"), Sampling(), 0)])


@pytest.mark.parametrize(("status", "text"), [(404, "no model m"), (401, "no key"), (400, "too long")])
def test_a_refusal_is_not_asked_again(status: int, text: str) -> None:
    with serving(lambda asked: Answer(text, status)) as server:
        with pytest.raises(RunError, match=f"refused, http://127.*status {status}: {text}"):
            _engine(server.url).generate([GenerateRequest(user("q"), Sampling(), 0)])
        assert len(server.asked) == 1


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": "x"}]}])
def test_a_server_of_another_kind_is_named(body: dict[str, Any]) -> None:
    with serving(lambda asked: Answer(body)) as server, pytest.raises(RunError, match="holds no message"):
        _engine(server.url).generate([GenerateRequest(user("q"), Sampling(), 0)])


def test_addresses_are_checked() -> None:
    for endpoints in ([], ["127.0.0.1:8000"], ["http://127.0.0.1:80OO/v1"], ["http://"]):
        with pytest.raises(UsageError, match="Give addresses such as http"):
            HttpEngine(endpoints, "m")


# --- log-probabilities of given texts -----------------------------------------------------------------


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
        found = _engine(server.url).score(requests)
    for ours, local in zip(found, tiny_engine.score(requests), strict=True):
        assert ours.logprobs == pytest.approx(local.logprobs, abs=1e-4)


def test_one_error_stops_what_has_not_begun() -> None:
    def answer(asked: Asked) -> Answer:
        wrong = asked.body["messages"][0]["content"] == "0"
        return Answer("no", 401) if wrong else Answer("busy", 503)

    with serving(answer) as server:
        engine = HttpEngine([server.url], "m")
        with pytest.raises(RunError, match="refused"):
            engine.generate([GenerateRequest(user(str(i)), Sampling(), 0) for i in range(200)])
        assert len(server.asked) < 100


def test_a_failing_server_leaves_the_work_to_the_others() -> None:
    with (
        serving(lambda asked: Answer("down", 500)) as down,
        serving(lambda asked: Answer(message("x"))) as up,
    ):
        engine = HttpEngine([down.url, up.url], "m", pause=lambda seconds: None)
        done = engine.generate([GenerateRequest(user("q"), Sampling(), i) for i in range(8)])
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
        pytest.raises(RunError, match="an answer has an unknown form"),
    ):
        _engine(server.url).score([ScoreRequest(user("q"), "a")])


def test_a_template_that_writes_a_begun_answer_otherwise_is_named() -> None:
    def answer(asked: Asked) -> Answer:
        begun = asked.body.get("continue_final_message", False)
        tokens = ["7", "8", "9"] if begun else ["7", "6"]
        return Answer({**message("x"), "prompt_logprobs": [None, *({t: {"logprob": -1.0}} for t in tokens)]})

    with serving(answer) as server, pytest.raises(RunError, match="cannot be told apart"):
        _engine(server.url).score([ScoreRequest(user("q"), "a")])


def test_a_server_without_prompt_logprobs_is_named() -> None:
    with (
        serving(lambda asked: Answer(message("x"))) as server,
        pytest.raises(LogprobsUnavailableError, match=r"127\.0\.0\.1.*prompt_logprobs"),
    ):
        _engine(server.url).score([ScoreRequest(user("q"), "a")])


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


@pytest.mark.parametrize(
    ("overrides", "message_"),
    [
        (("engine=http",), "http needs `model`"),
        (("engine=http", "endpoints=[http://127.0.0.1:1/v1]", "kind=linear_probe"), "shows no hidden states"),
        (("engine=http", "endpoints=[http://127.0.0.1:1/v1]", "kind=ensemble"), "shows no hidden states"),
    ],
)
def test_settings_that_cannot_work_over_http_are_refused(overrides: tuple[str, ...], message_: str) -> None:
    from solon.constitution import load_constitution

    with pytest.raises(ProblemsError, match=message_):
        asked_of("m", "choice", load_constitution("harmless"), "training", overrides)
