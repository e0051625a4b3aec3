"""Rows as stages write them, for tests that care about a few of their columns."""

from solon.records import Verdict, Written


def written(text: str, **changes: object) -> Written:
    """A text that ended by itself, in answer to the red-team prompt "p", with some columns changed."""
    return Written.model_validate(
        {
            "origin": "base",
            "prompt_id": "p",
            "prompt": "p",
            "prompt_kind": "red_team",
            "kind": "answer",
            "text": text,
            "request": "p",
            "sampling": "{}",
            "tokens": 1,
            "finish": "stop",
            **changes,
        }
    )


def verdict(prompt: str, p_a: float | None, on: str = "red_team") -> Verdict:
    """The judge's on an answer of the RL model, a, and one of base, b."""
    return Verdict.model_validate(
        {
            "parents": ("a", "b"),
            "origin": "judge",
            "prompt_id": prompt,
            "on": on,
            "a_model": "rl",
            "b_model": "base",
            "a_id": "a",
            "b_id": "b",
            "p_a": p_a,
        }
    )
