"""The scripted engine: deterministic, counts words as tokens, never makes a result up."""

import numpy as np
import pytest

from solon.engines.base import GenerateRequest, ScoreRequest, completions, scores, used_by, user
from solon.engines.scripted import END, ScriptedEngine
from solon.errors import RunError
from solon.recipe import Recipe
from solon.settings import Sampling
from solon.stages import evaluate

ASKED = GenerateRequest(user("one two three"), Sampling(max_tokens=3), seed=0)
SCORED = ScoreRequest(user("one two three"), "a b")


def test_replies_are_cut_at_max_tokens() -> None:
    replies = iter(["yes yes", "a b c", "a b c d"])
    engine = ScriptedEngine(lambda request: next(replies))
    short, exact, long = completions(engine, [ASKED] * 3)
    assert (short.text, short.finish) == ("yes yes", "stop")
    assert short.token_ids[0] == short.token_ids[1] != END == short.token_ids[2]
    assert (exact.text, exact.finish) == (long.text, long.finish) == ("a b c", "length")
    assert END not in long.token_ids
    assert short.prompt_tokens == 3
    assert (engine.tokens_generated, engine.tokens_read) == (9, 9)


def test_tokens_of_several_engines_are_counted_once_each() -> None:
    one, other = ScriptedEngine(lambda _: "yes"), ScriptedEngine(lambda _: "yes yes")
    used = used_by(one, other, one)
    completions(one, [ASKED])
    completions(other, [ASKED])
    assert used() == (3 + 2) + (3 + 3), "three words read, one or two said, and the end"


def test_evaluation_counts_the_tokens_of_models_that_it_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = {"base": ScriptedEngine(lambda _: "yes"), "sl": ScriptedEngine(lambda _: "yes yes")}
    monkeypatch.setattr(evaluate, "engine_for", lambda recipe, name: opened[name])
    engines = evaluate._OneAtATime(Recipe(name="r"), {name: name for name in opened})  # type: ignore[misc]
    assert engines.used() == 0
    for name, total in (("base", 5), ("base", 10), ("sl", 16)):
        completions(engines.open(name), [ASKED])
        assert engines.used() == total


def test_scores_and_hidden_states_are_the_functions() -> None:
    engine = ScriptedEngine(
        logprobs=lambda r: [-1.0] * len(r.continuation.split()), hidden=lambda r, layer: [layer, 2.0]
    )
    assert scores(engine, [SCORED])[0].total == -2.0
    features = engine.hidden_features([SCORED, SCORED], [0.5, 1.0], ["mean", "last"])
    assert features.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(features[0, :, 1], [[0.5, 2.0], [1.0, 2.0]])
    assert engine.tokens_read == 3 * 5


def test_what_is_not_scripted_is_refused() -> None:
    engine = ScriptedEngine()
    with pytest.raises(RunError, match="cannot generate"):
        completions(engine, [ASKED])
    with pytest.raises(RunError, match="cannot score"):
        scores(engine, [SCORED])
    with pytest.raises(RunError, match="no hidden states"):
        engine.hidden_features([SCORED], [0.5], ["mean"])


def test_empty_continuations_are_refused() -> None:
    engine = ScriptedEngine(logprobs=lambda r: [])
    with pytest.raises(RunError, match="empty continuation"):
        scores(engine, [ScoreRequest(user("one"), " ")])
