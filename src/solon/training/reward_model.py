"""The reward model: an adapter on a frozen trunk, and a scalar head that reads an answer's hidden states.

It reads the last real token after the last block, or where `ReadAt` says: half-way up, and in the mean over
an answer's tokens, a small model tells good from bad far better than where it chooses its next token. With
a gate the prompt has a say in which direction is good.

Scores are normalised to mean 0 and standard deviation 1 on reference answers; the constants are saved
with the weights, so that a score means the same wherever it is read. So is what tells the tokenizer apart:
token ids of another one would be scored without a word of warning.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from solon.digest import digest
from solon.errors import RunError
from solon.models import ModelSource
from solon.saving import saving
from solon.training.adapters import add_adapter, load_adapter, save_adapter
from solon.training.attention import load_trunk
from solon.training.batching import budget_batches
from solon.training.encoding import Encoded
from solon.training.views import LAST_TOKEN, Pooled, ReadAt, View
from solon.training_settings import Lora

_BATCH_TOKENS = 4096
_OPENED = 1e-3  # Variance of a gate below which all prompts are of one kind to it
_HEAD, _ABOUT = "head.safetensors", "reward.json"


class Gate(nn.Module):
    """A second direction, which counts as far as the prompt is of one kind (+) or the other (-).

    Zero at first: a new gate changes no score.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, 1)
        self.by_kind = nn.Linear(width, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def opened(self, prompt_BD: Tensor) -> Tensor:
        """[B, 1], from -1 to 1: twice the probability of the first kind, less 1."""
        opened_B1: Tensor = torch.tanh(self.kind(prompt_BD) / 2)
        return opened_B1

    def forward(self, read: Pooled) -> Tensor:
        added_B1: Tensor = self.opened(read.prompt_BD) * self.by_kind(read.answer_BD)
        return added_B1


class RewardModel(nn.Module):
    """A view of a trunk, read at one place, and a linear head in float32, with a gate or without."""

    def __init__(
        self,
        trunk: PeftModel,
        adapter: str = "default",
        seed: int = 0,
        at: ReadAt = LAST_TOKEN,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.at = at
        self.view = View(trunk.get_base_model(), adapter)
        width = self.view.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1)
        self.gate = Gate(width) if gated else None
        # Stiennon et al. 2020, appendix B.1: N(0, 1/sqrt(d + 1)) keeps first scores near unit size.
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, 1.0 / math.sqrt(width + 1), generator=generator)
            self.head.bias.zero_()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, rows: Sequence[Encoded]) -> Tensor:
        """Raw scores [len(rows)] of prompts with their answers."""
        return self.scores_of(self.view.pooled_states(rows, self.at))

    def scores_of(self, read: Pooled) -> Tensor:
        """Raw scores [B] of what was read of B rows."""
        scores_B1: Tensor = self.head(read.answer_BD)
        if self.gate is not None:
            scores_B1 = scores_B1 + self.gate(read)
        return scores_B1.squeeze(-1)

    def normalised(self, raw: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (raw - mean) / std

    @torch.no_grad()
    def features(self, rows: Sequence[Encoded], adapted: bool = True) -> Pooled:
        """What head and gate read, on the CPU; of the trunk without its adapter unless `adapted`."""
        view = self.view if adapted else replace(self.view, adapter=None)
        answers, prompts = torch.zeros(2, len(rows), self.head.in_features)
        for batch in _batches(rows):
            read = view.pooled_states([rows[i] for i in batch], self.at)
            answers[batch], prompts[batch] = read.answer_BD.cpu(), read.prompt_BD.cpu()
        return Pooled(answers, prompts)

    @torch.no_grad()
    def score(self, rows: Sequence[Encoded]) -> Tensor:
        """Normalised scores [len(rows)], float32 on the CPU. Raises RunError if one is no number.

        A row that is there several times, as an answer in several pairs is, is read once.
        """
        place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
        different = list(place)
        scores = torch.zeros(len(different))
        for batch in _batches(different):
            scores[batch] = self.normalised(self([different[i] for i in batch])).cpu()
        return _numbers(scores)[[place[row] for row in rows]]

    @torch.no_grad()
    def normalise_on(self, rows: Sequence[Encoded]) -> None:
        """Set the constants so that `rows` score with mean 0 and standard deviation 1.

        A gated model's score is made not to depend on the gate among them first. Pairs share their prompt, so
        that they say nothing of which kind of prompt has the higher scores; PPO would take what is left to
        chance for an advantage of all answers to one kind.
        """
        read = self.features(rows).to(self.view.device)
        if self.gate is not None:
            self._level(self.gate, read)
        raw = _numbers(self.scores_of(read))
        std = float(raw.std())
        if not std > 1e-6:
            raise RunError(
                "the reward model gives every reference answer the same score: it has learned nothing."
            )
        self.get_buffer("mean").fill_(float(raw.mean()))
        self.get_buffer("std").fill_(std)

    def _level(self, gate: Gate, read: Pooled) -> None:
        """Take the slope of the rows' scores over the gate, by least squares, out of the gate's bias."""
        opened_B = gate.opened(read.prompt_BD).squeeze(-1)
        opened_B = opened_B - opened_B.mean()
        spread = float((opened_B**2).sum())
        if spread > _OPENED * len(opened_B):
            gate.by_kind.bias.sub_(float((opened_B * _numbers(self.scores_of(read))).sum()) / spread)

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Adapters in PEFT's standard format, head and constants beside them.

        Raises:
            RunError: the folder cannot be written.
        """
        head = {k: v.detach().cpu().contiguous() for k, v in self.readers().state_dict().items()}
        about = {
            "mean": float(self.get_buffer("mean")),
            "std": float(self.get_buffer("std")),
            "tokenizer": tokenizer_digest(tokenizer),
            "gated": self.gate is not None,
            **asdict(self.at),
        }
        with saving(folder) as temporary:
            save_adapter(self.trunk, temporary)
            save_file(head, temporary / _HEAD)
            (temporary / _ABOUT).write_text(json.dumps(about))

    def readers(self) -> nn.ModuleDict:
        """What reads the states: the head, and the gate if there is one."""
        return nn.ModuleDict({"head": self.head, **({"gate": self.gate} if self.gate is not None else {})})


def _numbers(scores_B: Tensor) -> Tensor:
    """The scores themselves. Raises RunError if one is no number."""
    if not bool(torch.isfinite(scores_B).all()):
        raise RunError(
            "the reward model gave a score that is no number. Lower reward.optimiser.learning_rate."
        )
    return scores_B


def _batches(rows: Sequence[Encoded]) -> list[list[int]]:
    return budget_batches([len(row.ids) for row in rows], _BATCH_TOKENS)


def new_reward_model(
    source: ModelSource,
    device: str,
    dtype: torch.dtype,
    lora: Lora,
    seed: int,
    at: ReadAt = LAST_TOKEN,
    gated: bool = False,
) -> RewardModel:
    """A reward model that starts from a language model's trunk; only blocks that are read get adapters.

    In eval mode, also for its training: a run that goes on after a kill would draw another dropout.
    """
    model = load_trunk(source, device, dtype)
    trunk = add_adapter(model, lora, seed, "default", at.blocks_of(model))
    return RewardModel(trunk, seed=seed, at=at, gated=gated).to(device).eval()


def load_reward_model(folder: Path, trunk: Any, tokenizer: Any, adapter: str = "reward") -> RewardModel:
    """A saved reward model, as one more adapter on the trunk that it was trained from; it is not trained.

    `trunk` is a transformers model, or one that has adapters already.

    Raises:
        RunError: the folder is incomplete, does not fit the trunk, or is of another tokenizer.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        at = ReadAt(about["depth"], about["pooling"])
        model = RewardModel(load_adapter(trunk, folder, adapter), adapter, at=at, gated=about["gated"])
        model.readers().load_state_dict(load_file(folder / _HEAD))
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
