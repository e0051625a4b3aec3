"""Episodes packed into one pass: every token has its place, and what they share stands there once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solon.models import load_model, resolve
from solon.training.encoding import Encoded
from solon.training.planting import lay_out

START = tuple(range(30, 40))
CPU = torch.device("cpu")
tails = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load_model(resolve(str(tiny_model_folder)), "cpu", torch.float32)


@given(tails)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_token_of_every_row_has_its_place(model: Any, drawn: list[list[int]]) -> None:
    rows = [(*START, *tail) for tail in drawn]
    planted = lay_out(model, rows)
    ids_BT = planted.arguments["input_ids"]
    for row, b, columns in zip(rows, planted.rows, planted.columns, strict=True):
        assert tuple(ids_BT[b, list(columns)].tolist()) == row
    states = {row: torch.arange(len(row)).float().unsqueeze(1) + 100 * i for i, row in enumerate(rows)}
    entering = lay_out(model, rows, lambda row: states[tuple(row)]).arguments["inputs_embeds"]
    for b, columns in zip(planted.rows, planted.columns, strict=True):
        assert (entering[b, list(columns), 0] % 100).tolist() == list(range(len(columns)))


def test_answers_are_chosen_one_token_before_they_stand(model: Any) -> None:
    """Two answers to one prompt of eleven tokens: both first tokens are chosen at its last."""
    episodes = [Encoded((*START, 4), (5, 6)), Encoded((*START, 4), (7,)), Encoded((4, 5), (6, 7))]
    planted = lay_out(model, [e.ids for e in episodes])
    row_N, column_N = planted.chosen_at(episodes, CPU)
    assert column_N.tolist() == [10, 11, 10, 1, 2]
    assert row_N.tolist()[:3] == [planted.rows[0]] * 3
    assert row_N.tolist()[3:] == [planted.rows[2]] * 2
    assert planted.arguments["input_ids"].shape == (2, 14)


def test_an_episode_without_an_answer_has_no_places(model: Any) -> None:
    episodes = [Encoded((4, 5), ())]
    row_N, column_N = lay_out(model, [e.ids for e in episodes]).chosen_at(episodes, CPU)
    assert len(row_N) == len(column_N) == 0


def test_an_answer_needs_a_prompt(model: Any) -> None:
    episodes = [Encoded((), (4, 5))]
    with pytest.raises(ValueError, match="a prompt is empty"):
        lay_out(model, [e.ids for e in episodes]).chosen_at(episodes, CPU)
