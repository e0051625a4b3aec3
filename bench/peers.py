"""What the peers of several benches have in common: prompts padded on the left, as `generate` wants them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of the prompts, int64 [B, T] each; the mask is 1 where a token is real."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
