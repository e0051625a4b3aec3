"""The reward model: an adapter on a frozen trunk, and a scalar head that reads an answer's hidden states.

It reads the last real token after the last block, or where `ReadAt` says: half-way up, and in the mean over
an answer's tokens, a small model tells good from bad far better than where it chooses its next token.

Scores are normalised to mean 0 and standard deviation 1 on reference answers; the constants are saved
with the weights, so that a score means the same wherever it is read. So is what tells the tokenizer apart:
token ids of another one would be scored without a word of warning.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
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
from solon.training.encoding import Encoded
from solon.training.views import LAST_TOKEN, ReadAt, View

_BATCH_TOKENS = 4096
_HEAD, _ABOUT = "head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """A view of a trunk, read at one place, and a linear head in float32."""

    def __init__(
        self, trunk: PeftModel, adapter: str = "default", seed: int = 0, at: ReadAt = LAST_TOKEN
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.at = at
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

    def forward(self, rows: Sequence[Encoded]) -> Tensor:
        """Raw scores [len(rows)] of prompts with their answers."""
        scores_B: Tensor = self.head(self.view.pooled_states(rows, self.at)).squeeze(-1)
        return scores_B

    def normalised(self, raw: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (raw - mean) / std

    @torch.no_grad()
    def features(self, rows: Sequence[Encoded]) -> Tensor:
        """What the head reads, float32 on the CPU, [len(rows), width]."""
        found = torch.zeros(len(rows), self.head.in_features)
        for batch in _batches(rows):
            found[batch] = self.view.pooled_states([rows[i] for i in batch], self.at).cpu()
        return found

    @torch.no_grad()
    def score(self, rows: Sequence[Encoded]) -> Tensor:
        """Normalised scores [len(rows)], float32 on the CPU. Raises RunError if one is no number."""
        scores = torch.zeros(len(rows))
        for batch in _batches(rows):
            scores[batch] = self.normalised(self([rows[i] for i in batch])).cpu()
        if not bool(torch.isfinite(scores).all()):
            raise RunError(
                "the reward model gave a score that is no number. Lower reward.optimiser.learning_rate."
            )
        return scores

    def normalise_on(self, rows: Sequence[Encoded]) -> None:
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
            **asdict(self.at),
        }
        with saving(folder) as temporary:
            save_adapter(self.trunk, temporary)
            save_file(head, temporary / _HEAD)
            (temporary / _ABOUT).write_text(json.dumps(about))


def _batches(rows: Sequence[Encoded]) -> list[list[int]]:
    return budget_batches([len(row.ids) for row in rows], _BATCH_TOKENS)


def new_reward_model(
    source: ModelSource, device: str, dtype: torch.dtype, lora: Lora, seed: int, at: ReadAt = LAST_TOKEN
) -> RewardModel:
    """A reward model that starts from a language model's trunk; only blocks that are read get adapters."""
    model = load_trunk(source, device, dtype)
    trunk = add_adapter(model, lora, seed, "default", at.blocks_of(model))
    return RewardModel(trunk, seed=seed, at=at).to(device)


def load_reward_model(folder: Path, trunk: Any, tokenizer: Any, adapter: str = "reward") -> RewardModel:
    """A saved reward model, as one more adapter on the trunk that it was trained from; it is not trained.

    `trunk` is a transformers model, or one that has adapters already.

    Raises:
        RunError: the folder is incomplete, does not fit the trunk, or is of another tokenizer.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        at = ReadAt(about["depth"], about["pooling"])
        model = RewardModel(load_adapter(trunk, folder, adapter), adapter, at=at)
        model.head.load_state_dict(load_file(folder / _HEAD))
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
