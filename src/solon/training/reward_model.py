"""The reward model: a trunk with a scalar head that reads an answer's last real token.

Scores are normalised to mean 0 and standard deviation 1 on reference answers; the constants are saved
with the weights, so that a score means the same wherever it is read.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from solon.errors import RunError
from solon.models import ModelSource, load_model
from solon.recipe import Lora
from solon.saving import saving
from solon.training.adapters import add_adapter, save_adapter
from solon.training.batching import budget_batches, mask_of, pad_right

_BATCH_TOKENS = 4096


class RewardModel(nn.Module):
    """Adapters on a frozen trunk, and a linear head in float32."""

    def __init__(self, trunk: PeftModel, width: int, seed: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1)
        # Stiennon et al. 2020, appendix B.1: N(0, 1/sqrt(d + 1)) keeps first scores near unit size.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
            self.head.bias.zero_()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Raw scores [B] of right-padded sequences with explicit lengths."""
        mask_BT = mask_of(lengths_B, ids_BT.shape[1])
        hidden_BTD = self.trunk(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
        last_BD = hidden_BTD[rows_B, lengths_B - 1].float()
        scores_B: Tensor = self.head(last_BD).squeeze(-1)
        return scores_B

    def normalised(self, raw: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (raw - mean) / std

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Normalised scores [len(rows)], float32 on the CPU. Raises RunError if one is no number."""
        device = self.head.weight.device
        scores = torch.zeros(len(rows))
        for batch in budget_batches([len(row) for row in rows], _BATCH_TOKENS):
            ids_BT, lengths_B = pad_right([rows[i] for i in batch], 0)
            scores[batch] = self.normalised(self(ids_BT.to(device), lengths_B.to(device))).cpu()
        if not bool(torch.isfinite(scores).all()):
            raise RunError(
                "the reward model gave a score that is no number. Lower reward.optimiser.learning_rate."
            )
        return scores

    def normalise_on(self, rows: Sequence[Sequence[int]]) -> None:
        """Set the constants so that `rows` score with mean 0 and standard deviation 1."""
        self.get_buffer("mean").zero_()
        self.get_buffer("std").fill_(1.0)
        raw = self.score(rows)
        std = float(raw.std())
        if not std > 1e-6:
            raise RunError(
                "the reward model gives every reference answer the same score: it has learned nothing."
            )
        self.get_buffer("mean").fill_(float(raw.mean()))
        self.get_buffer("std").fill_(std)

    def save(self, folder: Path) -> None:
        """Adapters in PEFT's standard format, head and constants beside them.

        Raises:
            RunError: the folder cannot be written.
        """
        head = {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        constants = {"mean": float(self.get_buffer("mean")), "std": float(self.get_buffer("std"))}
        with saving(folder) as temporary:
            save_adapter(self.trunk, temporary)
            save_file(head, temporary / "head.safetensors")
            (temporary / "normalisation.json").write_text(json.dumps(constants))


def new_reward_model(
    source: ModelSource, device: str, dtype: torch.dtype, lora: Lora, seed: int
) -> RewardModel:
    """A reward model that starts from a language model's trunk."""
    base = _trunk(source, device, dtype)
    return RewardModel(add_adapter(base, lora, seed, task=None), base.config.hidden_size, seed).to(device)


def load_reward_model(folder: Path, source: ModelSource, device: str, dtype: torch.dtype) -> RewardModel:
    """A saved reward model, frozen, on the trunk that it was trained from.

    Raises:
        RunError: the folder is incomplete or does not fit the trunk.
    """
    base = _trunk(source, device, dtype)
    try:
        model = RewardModel(PeftModel.from_pretrained(base, folder), base.config.hidden_size, 0)
        model.head.load_state_dict(load_file(folder / "head.safetensors"))
        constants = json.loads((folder / "normalisation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{folder}: not a reward model of this trunk ({error}). Run the stage reward again."
        ) from error
    model.get_buffer("mean").fill_(constants["mean"])
    model.get_buffer("std").fill_(constants["std"])
    return model.to(device).eval().requires_grad_(False)


def _trunk(source: ModelSource, device: str, dtype: torch.dtype) -> Any:
    """The language model without its head over the vocabulary."""
    return load_model(source, device, dtype).model
