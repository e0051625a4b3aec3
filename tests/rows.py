"""Rows as stages write them, for tests that care about a few of their columns."""

from solon.records import Written


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
