"""The reward model: an adapter on a frozen trunk and a scalar head that reads an answer's last real token.

Scores are normalised to mean 0 and standard deviation 1 on reference answers; the constants are saved
with the weights, so that a score means the same wherever it is read. So is what tells the tokenizer apart:
token ids of another one would be scored without a word of warning.
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

from solon.digest import digest
from solon.errors import RunError
from solon.models import ModelSource
from solon.recipe import Lora
from solon.saving import saving
from solon.training.adapters import add_adapter, load_adapter, save_adapter
from solon.training.attention import load_trunk
from solon.training.batching import budget_batches
from solon.training.views import View

_BATCH_TOKENS = 4096
_HEAD, _ABOUT = "head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """A view of a trunk, and a linear head in float32."""

    def __init__(self, trunk: PeftModel, adapter: str = "default", seed: int = 0) -> None:
        super().__init__()
        self.trunk = trunk
        self.view = View(trunk.get_base_model(), adapter)
        width = self.view.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1)
        # Stiennon et al. 2020, appendix B.1: N(0, 1/sqrt(d + 1)) keeps first scores near unit size.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
            self.head.bias.zero_()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores [len(rows)] of token ids, read at each row's last one."""
        scores_B: Tensor = self.head(self.view.last_states(rows).float()).squeeze(-1)
        return scores_B

    def normalised(self, raw: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (raw - mean) / std

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Normalised scores [len(rows)], float32 on the CPU. Raises RunError if one is no number."""
        scores = torch.zeros(len(rows))
        for batch in budget_batches([len(row) for row in rows], _BATCH_TOKENS):
            scores[batch] = self.normalised(self([rows[i] for i in batch])).cpu()
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

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Adapters in PEFT's standard format, head and constants beside them.

        Raises:
            RunError: the folder cannot be written.
        """
        head = {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}
        about = {
            "mean": float(self.get_buffer("mean")),
            "std": float(self.get_buffer("std")),
            "tokenizer": tokenizer_digest(tokenizer),
        }
        with saving(folder) as temporary:
            save_adapter(self.trunk, temporary)
            save_file(head, temporary / _HEAD)
            (temporary / _ABOUT).write_text(json.dumps(about))


def new_reward_model(
    source: ModelSource, device: str, dtype: torch.dtype, lora: Lora, seed: int
) -> RewardModel:
    """A reward model that starts from a language model's trunk."""
    trunk = add_adapter(load_trunk(source, device, dtype), lora, seed, "default")
    return RewardModel(trunk, seed=seed).to(device)


def load_reward_model(folder: Path, trunk: Any, tokenizer: Any, adapter: str = "reward") -> RewardModel:
    """A saved reward model, as one more adapter on the trunk that it was trained from; it is not trained.

    `trunk` is a transformers model, or one that has adapters already.

    Raises:
        RunError: the folder is incomplete, does not fit the trunk, or is of another tokenizer.
    """
    try:
        model = RewardModel(load_adapter(trunk, folder, adapter), adapter)
        model.head.load_state_dict(load_file(folder / _HEAD))
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        model.get_buffer("mean").fill_(about["mean"])
        model.get_buffer("std").fill_(about["std"])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RunError(
            f"{folder}: not a reward model of this trunk ({error}). Run the stage reward again."
        ) from error
    if about.get("tokenizer") != tokenizer_digest(tokenizer):
        raise RunError(
            f"{folder}: this reward model was trained with another tokenizer than the policy has: the same "
            "token ids mean other text to it. Train it on this policy's model (stage reward)."
        )
    return model.to(trunk.device).eval().requires_grad_(False)


def tokenizer_digest(tokenizer: Any) -> str:
    """What decides which text token ids mean: the vocabulary, and the end token."""
    return digest([sorted(tokenizer.get_vocab().items()), int(tokenizer.eos_token_id)])
