"""The options that a judge offers a model, and their probabilities.

The options' log-probabilities are normalised over the options alone (Bai et al. 2022, sec. 4.1). An option
that a tokenizer cannot write is an error, and one that a server does not tell leaves the question unscored:
a missing option never counts as one half.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solon.engines.base import Conversation, Engine, OptionRequest
from solon.errors import RunError

CHOICES = ("(A)", "(B)")
RATINGS = ("1", "2", "3", "4", "5")
UNTOLD = "the server does not tell the log-probability of every option"


def probabilities(
    engine: Engine, asked: Sequence[tuple[Conversation, str]], options: Sequence[str]
) -> NDArray[np.float64]:
    """[asked, options], rows that sum to 1: how likely each option follows a conversation and a start.

    The start is what the assistant's turn has said already, often nothing. A row is NaN where the engine did
    not tell the log-probability of every option.

    Raises:
        RunError: the model writes options with the same tokens, or gives a log-probability that is no number.
        LogprobsUnavailableError: the engine gives no log-probabilities of the options.
    """
    requests = [OptionRequest(conversation, start, tuple(options)) for conversation, start in asked]
    told = engine.option_logprobs(requests)
    known = [row for row in told if row is not None]
    if not np.isfinite(known).all():
        raise RunError(f"{engine.name} gives an option a log-probability that is no number.")
    untold = [math.nan] * len(options)
    totals = np.array([untold if row is None else row for row in told]).reshape(len(asked), len(options))
    shifted = np.exp(totals - totals.max(1, keepdims=True))
    normed: NDArray[np.float64] = shifted / shifted.sum(1, keepdims=True)
    return normed
