"""Episodes packed into one pass: every token has its place, and what they share stands there once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.models import load_model, resolve
from solon.training.encoding import Encoded
from solon.training.planting import planted

START = tuple(range(30, 40))
CPU = torch.device("cpu")
tails = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)


@given(tails)
@settings(deadline=None)
def test_every_token_of_every_row_has_its_place(model: Any, drawn: list[list[int]]) -> None:
    rows = [(*START, *tail) for tail in drawn]
    laid = planted(model, rows)
    ids_BT = laid.arguments["input_ids"]
    assert ids_BT.numel() <= len(rows) * max(map(len, rows))
    for row, b, columns in zip(rows, laid.rows, laid.columns, strict=True):
        assert tuple(ids_BT[b, list(columns)].tolist()) == row


@given(tails)
@settings(deadline=None)
def test_states_enter_where_their_tokens_stand(model: Any, drawn: list[list[int]]) -> None:
    rows = [(*START, *tail) for tail in drawn]

    def state(row: Sequence[int]) -> list[float]:
        """A number for every token that depends on all before it."""
        return [float(hash(tuple(row[: t + 1])) % 9973) for t in range(len(row))]

    laid = planted(model, rows, lambda row: torch.tensor(state(row)).unsqueeze(1))
    entering_BT = laid.arguments["inputs_embeds"].squeeze(-1)
    for row, b, columns in zip(rows, laid.rows, laid.columns, strict=True):
        assert entering_BT[b, list(columns)].tolist() == state(row)


def test_rows_are_packed_only_where_that_takes_fewer_columns(model: Any) -> None:
    """Five answers to one prompt make a tree of 240; eleven other rows would each be padded to that."""
    prompt = tuple(range(20))
    answers = [(*prompt, 50 + k, *range(43)) for k in range(5)]
    others = [tuple((7 * k + j) % 60 for j in range(64)) for k in range(1, 12)]
    assert planted(model, answers).arguments["input_ids"].shape == (1, 240)
    wide = planted(model, [*answers, *others]).arguments
    assert wide["input_ids"].shape == (16, 64)
    assert "attention_mask" not in wide


def test_a_very_long_row_makes_no_mask_of_its_width(model: Any) -> None:
    long = tuple(j % 60 for j in range(1100))
    laid = planted(model, [long, (*START, 4, 5), (*START, 4, 6), (*START, 4, 7)]).arguments
    assert laid["input_ids"].shape == (4, 1100)
    assert "attention_mask" not in laid


def test_answers_are_chosen_one_token_before_they_stand(model: Any) -> None:
    """Two answers to one prompt of eleven tokens: both first tokens are chosen at its last."""
    episodes = [Encoded((*START, 4), (5, 6)), Encoded((*START, 4), (7,)), Encoded((4, 5), (6, 7))]
    laid = planted(model, [e.ids for e in episodes])
    row_N, column_N = laid.chosen_at(episodes, CPU)
    assert column_N.tolist() == [10, 11, 10, 1, 2]
    assert row_N.tolist()[:3] == [laid.rows[0]] * 3
    assert row_N.tolist()[3:] == [laid.rows[2]] * 2
    assert laid.arguments["input_ids"].shape == (2, 14)


def test_an_episode_without_an_answer_has_no_places(model: Any) -> None:
    episodes = [Encoded((4, 5), ())]
    row_N, column_N = planted(model, [e.ids for e in episodes]).chosen_at(episodes, CPU)
    assert len(row_N) == len(column_N) == 0


def test_an_answer_needs_a_prompt(model: Any) -> None:
    episodes = [Encoded((), (4, 5))]
    with pytest.raises(ValueError, match="a prompt is empty"):
        planted(model, [e.ids for e in episodes]).chosen_at(episodes, CPU)
