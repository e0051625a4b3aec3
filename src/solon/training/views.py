"""One trunk, several models: a view is the frozen base weights with one of their adapters on, or none.

Policy, reference, critic and reward model share one copy of the base weights; which of them a forward pass
is, is decided by the adapter that is on. What rows of a batch have in common at their start (a prompt, a chat
template's header) is computed once, with gradients (`training.planting`).

Names carry shapes: B rows, T tokens of a row, N answer tokens end to end, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from solon.engines.hooks import before_head, blocks, hidden_at, plain_head
from solon.training.adapters import using
from solon.training.encoding import Encoded
from solon.training.head import chosen_logprobs
from solon.training.losses import entropy, token_logprobs
from solon.training.planting import Planted, planted
from solon.training.stems import Stems, skipping


@dataclass(frozen=True)
class Spoken:
    """What a model says of answer tokens, float32 [N], in nats; and the states before its head, [N, D]."""

    logp_N: Tensor
    entropy_N: Tensor
    hidden_ND: Tensor


@dataclass(frozen=True)
class ReadAt:
    """Where an answer is read: after which share of the blocks, and which of its tokens."""

    depth: float = 1.0
    pooling: Literal["last", "mean"] = "last"

    def blocks_of(self, model: Any) -> int:
        """The blocks of the model below that place: at least one."""
        return max(1, round(self.depth * len(blocks(model))))

    def tokens(self, answer: int) -> int:
        """How many of a row's last tokens are read, of which `answer` are an answer's.

        An answer without tokens is read where its first would have been chosen.
        """
        return 1 if self.pooling == "last" else max(1, answer)


LAST_TOKEN = ReadAt()


@dataclass(frozen=True)
class Pooled:
    """What a reward model sees of B rows, float32 [B, D] each: the answer, and the prompt's last token."""

    answer_BD: Tensor
    prompt_BD: Tensor

    def to(self, device: torch.device) -> "Pooled":
        return Pooled(self.answer_BD.to(device), self.prompt_BD.to(device))


@dataclass(frozen=True)
class View:
    """A transformers causal language model under one of the adapters inside it; None: the weights alone.

    Rows that `stems` hold are read from there on; its depth must be below the adapter's first block.
    """

    model: Any
    adapter: str | None = None
    stems: Stems | None = None

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found

    def speak(self, episodes: Sequence[Encoded], temperature: float) -> Spoken:
        """Read all answer tokens of the episodes, in order, with gradients where parameters want them."""
        chosen_N = torch.tensor([token for e in episodes for token in e.answer], device=self.device)
        head_VD = plain_head(self.model)
        if head_VD is None:
            return self._speak_aloud(episodes, chosen_N, temperature)
        hidden_ND = self.states(episodes)
        return Spoken(*chosen_logprobs(hidden_ND, head_VD, chosen_N, temperature), hidden_ND)

    def _speak_aloud(self, episodes: Sequence[Encoded], chosen_N: Tensor, temperature: float) -> Spoken:
        """Where logits are capped or scaled: through the model's own head, at answer positions alone."""
        with self._reading(episodes) as laid:
            where = laid.chosen_at(episodes, self.device)
            with before_head(self.model, where) as hidden:
                logits_NV = self.model(**laid.arguments).logits[0].float()
        spread_N = entropy(logits_NV.detach() / temperature)
        return Spoken(token_logprobs(logits_NV, chosen_N, temperature), spread_N, hidden[0])

    def states(self, episodes: Sequence[Encoded]) -> Tensor:
        """The hidden states [N, D] from which the answer tokens are chosen, one each, in order."""
        with self._reading(episodes) as laid:
            where = laid.chosen_at(episodes, self.device)
            hidden_ND: Tensor = self.model.base_model(**laid.arguments).last_hidden_state[where]
        return hidden_ND

    def pooled_states(self, episodes: Sequence[Encoded], at: ReadAt) -> Pooled:
        """The states of each episode; a mean is over its answer's tokens."""
        with self._reading(episodes) as laid:
            forward = partial(self.model.base_model, **laid.arguments)
            [hidden_BTD] = hidden_at(self.model, [at.blocks_of(self.model)], forward)
        answers, prompts = [], []
        for b, columns, e in zip(laid.rows, laid.columns, episodes, strict=True):
            read = list(columns[-at.tokens(len(e.answer)) :])
            answers.append(hidden_BTD[b, read].float().mean(0))
            prompts.append(hidden_BTD[b, columns[len(e.prompt) - 1]].float())
        return Pooled(torch.stack(answers), torch.stack(prompts))

    @contextmanager
    def _reading(self, episodes: Sequence[Encoded]) -> Iterator[Planted]:
        """The adapter is on, the blocks that the stems stand for are off, and the pass is laid out."""
        rows = [e.ids for e in episodes]
        stems = self.stems if self.stems and self.stems.covers(rows) else None
        with using(self.model, self.adapter), skipping(self.model, stems.depth if stems else 0):
            yield planted(self.model, rows, stems.of if stems else None)
