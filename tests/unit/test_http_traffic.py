"""What keeps requests to servers in order: the gate, the budget, the cache, and all of it under faults."""

import json
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from solon.engines.base import GenerateRequest, completions, user
from solon.engines.http_budget import Amount, Budget
from solon.engines.http_cache import ReplyCache
from solon.engines.http_client import retry_after
from solon.engines.http_gate import Gate, StoppedError
from solon.errors import RunError
from solon.roles import ServerSettings
from solon.settings import Sampling
from tests.faulty_server import FAULTS, HANG_SECONDS, faulty_server
from tests.http_setup import http_engine
from tests.unit.chat_server import Answer, Asked, message, serving


def _requests(count: int) -> list[GenerateRequest]:
    return [GenerateRequest(user(f"question {i}"), Sampling(max_tokens=4), i) for i in range(count)]


# --- the gate -----------------------------------------------------------------------------------------


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_next_request_goes_where_fewest_are_in_flight() -> None:
    gate = Gate(["a", "b"], 4)
    entered = [gate.enter() for _ in range(4)]
    assert [ticket.lane.url for ticket in entered] == ["a", "b", "a", "b"]
    gate.answered(entered[1])
    assert gate.enter().lane.url == "b"


def test_a_busy_endpoint_is_halved_and_left_alone_for_as_long_as_it_asks() -> None:
    clock = _Clock()
    gate = Gate(["a", "b"], 8, clock)
    first, _, third = gate.enter(), gate.enter(), gate.enter()
    clock.now += 1
    gate.busy(first, 5.0)
    # What was sent before the cut tells nothing new: a burst of refusals halves once.
    gate.busy(third, 5.0)
    lane = gate.lanes[0]
    assert (lane.limit, lane.free_at, lane.in_flight) == (4.0, 106.0, 0)
    assert gate.enter().lane.url == "b"
    clock.now += 5
    again = gate.enter()
    assert again.lane.url == "a"
    gate.answered(again)
    assert lane.limit == 4.25


def test_the_limit_grows_by_one_a_round_and_not_beyond_what_is_allowed() -> None:
    clock = _Clock()
    gate = Gate(["a"], 3, clock)
    clock.now += 1
    gate.busy(gate.enter(), 0.0)
    clock.now += 1
    assert gate.lanes[0].limit == 1.5
    for _ in range(9):
        gate.answered(gate.enter())
    assert gate.lanes[0].limit == 3.0


def test_an_endpoint_that_keeps_failing_is_tried_now_and_then_while_others_are_well() -> None:
    clock = _Clock()
    gate = Gate(["a", "b"], 2, clock)
    for _ in range(3):
        ticket = gate.enter()
        assert ticket.lane.url == "a"
        gate.failed(ticket)
    well = [gate.enter() for _ in range(2)]
    assert [ticket.lane.url for ticket in well] == ["b", "b"]
    assert gate.lanes[0].free_at > clock.now
    clock.now += 0.5
    probe = gate.enter()
    assert probe.lane.url == "a"
    gate.failed(probe)
    assert gate.lanes[0].free_at >= clock.now + 0.5, "each probe that fails makes the pause longer"
    clock.now += 60
    probe = gate.enter()
    assert probe.lane.url == "a"
    gate.answered(well[0])
    assert gate.enter().lane.url == "b", "one probe at a time"
    gate.answered(probe)
    assert [gate.enter().lane.url for _ in range(2)] == ["a", "a"], "it is back"


def test_where_all_endpoints_fail_none_is_spared() -> None:
    gate = Gate(["a"], 2, _Clock())
    for _ in range(5):
        gate.failed(gate.enter())
    assert [gate.enter().lane.url for _ in range(2)] == ["a", "a"]


def test_a_busy_endpoint_that_names_no_time_is_left_alone_ever_longer() -> None:
    clock = _Clock()
    gate = Gate(["a"], 4, clock)
    pauses = []
    for _ in range(4):
        clock.now += 100
        gate.busy(gate.enter(), None)
        pauses.append(gate.lanes[0].free_at - clock.now)
    assert all(low <= pause <= 2 * low for pause, low in zip(pauses, (0.25, 0.5, 1.0, 2.0), strict=True))


def test_an_endpoint_that_is_too_slow_twice_is_asked_less_at_a_time() -> None:
    clock = _Clock()
    gate = Gate(["a"], 8, clock)
    for limit in (8.0, 4.0):
        clock.now += 1
        gate.failed(gate.enter(), slow=True)
        assert gate.lanes[0].limit == limit


def test_come_back_at_once_is_not_taken_at_its_word() -> None:
    clock = _Clock()
    gate = Gate(["a"], 4, clock)
    for least in (0.25, 0.5):
        gate.busy(gate.enter(), 0.0)
        assert gate.free_at() >= clock.now + least
        clock.now += 100


def test_a_time_to_come_back_is_a_number_or_a_date() -> None:
    now = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
    assert retry_after("600", now) == 600
    assert retry_after("Fri, 27 Nov 2026 12:01:30 GMT", now) == 90
    assert retry_after("Fri, 27 Nov 2026 11:00:00 GMT", now) == 0
    assert [retry_after(told, now) for told in ("", "soon", "-1", "nan", "inf")] == [None] * 5


class _Ticking(_Clock):
    def __call__(self) -> float:
        self.now += 0.3
        return self.now


def test_a_server_that_wants_nothing_for_half_an_hour_ends_the_run() -> None:
    clock = _Ticking()

    def busy(asked: Asked) -> Answer:
        clock.now += 700
        return Answer("quota", 429, {"Retry-After": "0.01"})

    with serving(busy) as server, pytest.raises(RunError, match=r"more than 1800 s: http.*429: quota"):
        completions(http_engine(server.url, clock=clock), _requests(1))
    assert len(server.asked) == 4
    tomorrow = Answer("quota", 429, {"Retry-After": "86400"})
    with serving(lambda asked: tomorrow) as server, pytest.raises(RunError, match="more than 1800 s"):
        completions(http_engine(server.url), _requests(1))
    assert len(server.asked) == 1
    with serving(lambda asked: tomorrow) as server, serving(lambda asked: Answer(message("x"))) as other:
        assert len(completions(http_engine(server.url, other.url), _requests(20))) == 20


def test_a_dead_endpoint_does_not_end_the_run_while_the_others_are_full() -> None:
    def answer(asked: Asked) -> Answer:
        time.sleep(0.02)
        return Answer(message("x"))

    with serving(answer) as up:
        dead = "http://127.0.0.1:9/v1"
        done = completions(http_engine(dead, up.url, concurrency=2), _requests(60))
    assert len(done) == 60


def test_who_waits_is_told_that_all_has_stopped() -> None:
    gate = Gate(["a"], 1)
    gate.enter()
    stopped: list[bool] = []

    def wait() -> None:
        with pytest.raises(StoppedError):
            gate.enter()
        stopped.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    gate.stop()
    thread.join(5)
    assert stopped == [True]


# --- the budget ---------------------------------------------------------------------------------------


def test_the_limit_holds_with_many_requests_in_flight() -> None:
    """Every request may take 16 + 1 tokens and takes 10: with 100 allowed never more than 100 are used."""
    budget = Budget(ServerSettings(max_tokens=100), "judge")
    most = budget.most(prompt_bytes=0, turns=1, new_tokens=1)
    assert most == Amount(17)
    used: list[int] = []

    def work() -> None:
        try:
            while True:
                budget.set_aside(most)
                time.sleep(0.001)
                budget.settle(most, Amount(10))
                used.append(10)
        except RunError as error:
            errors.append(str(error))

    errors: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    # 9 times 10 is used; the next might take 17, which would be 107.
    assert sum(used) == 90 == budget.spent.tokens
    assert len(errors) == 8
    assert "judge.http.max_tokens=100 (90 used)" in errors[0]


def test_spending_is_by_the_prices() -> None:
    settings = ServerSettings(max_spending=1.0, price_read=2.0, price_written=10.0)
    budget = Budget(settings, "critic")
    assert budget.amount(read=100_000, written=30_000) == Amount(130_000, pytest.approx(0.5))
    half = budget.amount(100_000, 30_000)
    for _ in range(2):
        budget.set_aside(half)
        budget.settle(half, half)
    with pytest.raises(RunError, match=r"critic\.http\.max_spending=1 \(1 used\).*raise the limit"):
        budget.set_aside(half)


def test_a_limit_on_spending_needs_prices() -> None:
    with pytest.raises(ValidationError, match="without price_read or price_written nothing costs anything"):
        ServerSettings(max_spending=1.0)


def test_what_was_lost_counts_and_what_was_refused_does_not() -> None:
    bodies = [Answer("broken", 500), Answer("{", 200), Answer(message("x"))]
    answers = iter(bodies)
    with serving(lambda asked: next(answers)) as server:
        engine = http_engine(server.url, max_tokens=10_000)
        [done] = completions(engine, _requests(1))
    assert done.text == "x"
    spent = engine._client._budget.spent.tokens
    # The good answer says 7 + 3; the torn one counts as all it might have used, the body's bytes at least.
    body = len(json.dumps(server.asked[0].body))
    assert spent == 10 + body + 16 + 4


def test_a_refused_request_costs_nothing() -> None:
    with serving(lambda asked: Answer("too long", 400)) as server:
        engine = http_engine(server.url, max_tokens=10_000)
        with pytest.raises(RunError, match="refused"):
            completions(engine, _requests(1))
    assert engine._client._budget.spent == Amount()


@pytest.mark.parametrize(
    "usage", [{}, {"total_tokens": 3}, {"prompt_tokens": 7, "completion_tokens": None}, None]
)
def test_an_answer_that_does_not_say_what_it_used_counts_whole(usage: object) -> None:
    with serving(lambda asked: Answer({**message("x"), "usage": usage})) as server:
        engine = http_engine(server.url, max_tokens=10_000)
        completions(engine, _requests(1))
    assert engine._client._budget.spent.tokens == len(json.dumps(server.asked[0].body)) + 16 + 4


def test_a_proxys_time_out_counts_whole() -> None:
    answers = iter([Answer("gateway", 504), Answer(message("x"))])
    with serving(lambda asked: next(answers)) as server:
        engine = http_engine(server.url, max_tokens=10_000)
        completions(engine, _requests(1))
    assert engine._client._budget.spent.tokens == 10 + len(json.dumps(server.asked[0].body)) + 16 + 4


def test_a_run_stops_at_its_limit_and_goes_on_with_a_higher_one(tmp_path: Path) -> None:
    with serving(lambda asked: Answer(message("x"))) as server:
        cache = ReplyCache(tmp_path / "replies.sqlite", "judge.http.cache")
        small = http_engine(server.url, cache=cache, max_tokens=200, concurrency=1)
        with pytest.raises(RunError, match=r"max_tokens=200 \(\d+ used\).*What was answered is kept"):
            completions(small, _requests(30))
        asked = len(server.asked)
        assert 0 < asked < 30
        assert len(completions(http_engine(server.url, cache=cache), _requests(30))) == 30
        assert len(server.asked) == 30


# --- the cache ----------------------------------------------------------------------------------------


def test_nothing_is_asked_twice_not_even_of_a_server_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    with serving(lambda asked: Answer(message(asked.body["messages"][0]["content"]))) as server:
        first = completions(http_engine(server.url, cache=ReplyCache(path, "s")), _requests(20))
    again = http_engine(server.url, cache=ReplyCache(path, "s"))
    assert completions(again, _requests(20)) == first
    assert len(server.asked) == 20
    assert (again.tokens_read, again.tokens_generated) == (0, 0)


def test_what_is_being_asked_is_not_asked_again_meanwhile(tmp_path: Path) -> None:
    def slow(one: Asked) -> Answer:
        time.sleep(0.05)
        return Answer(message("x"))

    with serving(slow) as server:
        engine = http_engine(server.url, cache=ReplyCache(tmp_path / "c", "x"), concurrency=8)
        request = GenerateRequest(user("q"), Sampling(), 1)
        found = completions(engine, [request] * 8)
        assert [one.text for one in found] == ["x"] * 8
        assert len(server.asked) == 1


def test_a_template_that_adds_a_long_text_is_made_room_for_from_its_first_answer_on() -> None:
    budget = Budget(ServerSettings(max_tokens=1000), "judge")
    most = budget.most(prompt_bytes=20, turns=1, new_tokens=10)
    budget.set_aside(most)
    budget.settle(most, budget.amount(320, 10))
    assert budget.most(prompt_bytes=20, turns=1, new_tokens=10).tokens == 330


def test_an_account_without_money_is_not_waited_for() -> None:
    words = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    with serving(lambda one: Answer(words, 429)) as server:
        with pytest.raises(RunError, match="Check the account behind the key in SOLON_API_KEY"):
            completions(http_engine(server.url), [GenerateRequest(user("q"), Sampling(), 1)])
        assert len(server.asked) == 1


def test_another_seed_model_or_text_is_another_question(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite", "s")
    body = {"model": "m", "seed": 1, "messages": [{"role": "user", "content": "q"}]}
    cache.put("/chat/completions", body, {"a": 1})
    assert cache.get("/chat/completions", dict(reversed(body.items()))) == {"a": 1}
    for other in ({**body, "seed": 2}, {**body, "model": "n"}, {**body, "messages": []}):
        assert cache.get("/chat/completions", other) is None
    assert cache.get("/completions", body) is None


def test_the_key_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_API_KEY", "s3cret")
    path = tmp_path / "replies.sqlite"
    with serving(lambda asked: Answer(message("x"))) as server:
        cache = ReplyCache(path, "s")
        completions(http_engine(server.url, cache=cache), _requests(3))
        cache.close()
    assert all(b"s3cret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_text("not a database, and long enough to be looked at as one" * 20)
    with pytest.raises(RunError, match=r"replies\.sqlite: the cache.*judge\.http\.cache=off"):
        ReplyCache(path, "judge.http.cache")


def test_two_processes_may_share_it(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    one, two = ReplyCache(path, "s"), ReplyCache(path, "s")
    one.put("/p", {"q": 1}, {"r": 1})
    two.put("/p", {"q": 2}, {"r": 2})
    assert (one.get("/p", {"q": 2}), two.get("/p", {"q": 1})) == ({"r": 2}, {"r": 1})
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM replies").fetchone() == (2,)


# --- results as they finish ---------------------------------------------------------------------------


def test_results_come_as_they_finish_and_leaving_stops_the_rest() -> None:
    def answer(asked: Asked) -> Answer:
        if asked.body["messages"][0]["content"] == "question 0":
            slow.wait(5)
        return Answer(message("x"))

    slow = threading.Event()
    with serving(answer) as server:
        results = http_engine(server.url, concurrency=2).generate(_requests(400))
        early = [next(results).index for _ in range(5)]
        assert early == [1, 2, 3, 4, 5]
        slow.set()
        results.close()  # type: ignore[attr-defined]
        assert len(server.asked) < 20


def test_ten_thousand_requests_with_a_tenth_of_faults_are_answered_once_each() -> None:
    count = 10_000
    with faulty_server(share=0.1) as url:
        engine = http_engine(
            url, concurrency=64, tokens=True, timeout=HANG_SECONDS / 3, pause=lambda s: time.sleep(s / 50)
        )
        done = completions(engine, _requests(count))
        sent = httpx2.get(f"{url}/stats").json()
    assert [c.text for c in done] == [f"question {i}" for i in range(count)]
    assert {c.logprobs for c in done} == {(-0.25,)}
    assert set(sent) == {"good", *FAULTS}
    # A delay is the only fault with an answer in it.
    assert sent["good"] + sent["delay"] == count
    faults = sum(sent[fault] for fault in FAULTS)
    assert 0.08 < faults / sum(sent.values()) < 0.12
