"""Masks, minibatches and batches on small cases."""

import pytest
import torch

from solon.training.batching import budget_batches, mask_of, minibatches


def test_a_mask_is_true_for_as_many_columns_as_a_row_is_long() -> None:
    assert mask_of(torch.tensor([3, 0, 1]), 3).tolist() == [[True] * 3, [False] * 3, [True, False, False]]


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
