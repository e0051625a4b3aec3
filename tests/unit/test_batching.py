"""Padding, masks, minibatches and answer positions on small cases."""

import pytest
import torch

from solon.training.batching import (
    answer_positions,
    budget_batches,
    mask_of,
    minibatches,
    pad_right,
)


def test_pad_right() -> None:
    ids, lengths = pad_right([[5, 6, 7], [8], []], fill=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert lengths.tolist() == [3, 1, 0]
    assert ids.dtype == lengths.dtype == torch.int64


def test_pad_right_of_empty_rows_has_no_columns() -> None:
    ids, _ = pad_right([[], []], fill=0)
    assert ids.shape == (2, 0)


def test_pad_right_of_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        pad_right([], 0)


def test_mask_counts_lengths_whatever_the_ids_are() -> None:
    # The fill stands inside the row as well: only the length tells.
    ids, lengths = pad_right([[0, 0, 0], [0]], fill=0)
    assert mask_of(lengths, ids.shape[1]).tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("length", [-1, 4])
def test_mask_refuses_lengths_that_do_not_fit(length: int) -> None:
    with pytest.raises(ValueError, match="do not fit into 3 columns"):
        mask_of(torch.tensor([length]), 3)


def test_minibatches_are_fresh_each_time_and_repeat_with_the_seed() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = minibatches(50, 8, generator), minibatches(50, 8, generator)
    assert [len(batch) for batch in first] == [8] * 6 + [2]
    assert first != second
    assert first == minibatches(50, 8, torch.Generator().manual_seed(1))


def test_minibatch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="minibatch size"):
        minibatches(3, 0, torch.Generator())


def test_budget_batches_longest_first() -> None:
    # 7 fills 10 alone; 5 and 4 take 2 * 5 = 10; 3, 3 and 1 take 3 * 3 = 9; equal lengths keep their order.
    assert budget_batches([3, 7, 4, 3, 1, 5], budget=10) == [[1], [5, 2], [0, 3, 4]]


def test_a_batch_that_is_large_enough_takes_no_row_that_is_mostly_padding() -> None:
    # 10 + 10 is enough: 9 would be a tenth of padding. 9 + 9 + 9 is filled up with 2, as 9 alone is too few.
    assert budget_batches([10, 10, 9, 2, 9], budget=30, enough=20) == [[0, 1], [2, 4, 3]]
    assert budget_batches([100, 100, 91, 90], budget=1000, enough=200) == [[0, 1, 2], [3]]


def test_a_row_above_the_budget_stands_alone() -> None:
    assert budget_batches([2, 30, 2], budget=10) == [[1], [0, 2]]
    assert budget_batches([], budget=10) == []
    with pytest.raises(ValueError, match="token budget"):
        budget_batches([1], budget=0)


def test_answer_positions_point_one_before_each_answer_token() -> None:
    prompts, answers = torch.tensor([2, 1, 3]), torch.tensor([3, 0, 1])
    row, column = answer_positions(prompts, answers)
    # Row 0 is p p a a a: its answer stands in columns 2, 3, 4. Row 2 is p p p a: in column 3.
    assert row.tolist() == [0, 0, 0, 2]
    assert column.tolist() == [1, 2, 3, 2]


def test_answer_positions_gather_and_scatter_back() -> None:
    prompt_rows, answer_rows = [[1, 2], [3]], [[10], [20, 21, 22]]
    ids, _ = pad_right([p + a for p, a in zip(prompt_rows, answer_rows, strict=True)], fill=0)
    answers, lengths = pad_right(answer_rows, fill=0)
    row, column = answer_positions(torch.tensor([2, 1]), lengths)
    back = torch.zeros_like(answers)
    back[mask_of(lengths, answers.shape[1])] = ids[row, column + 1]
    assert torch.equal(back, answers)


def test_answer_positions_need_a_prompt() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        answer_positions(torch.tensor([1, 0]), torch.tensor([1, 1]))
