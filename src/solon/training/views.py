"""One trunk, several models: a view is the frozen base weights with one of their adapters on, or none.

Policy, reference, critic and reward model share one copy of the base weights; which of them a forward pass
is, is decided by the adapter that is on. What all rows of a batch have in common at their start (a system
text, a chat template's header) is computed once, with gradients.

Names carry shapes: B rows, T columns, N answer tokens end to end, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from solon.engines.hooks import before_head, blocks, divided, hidden_at, plain_head, shares_starts
from solon.engines.prefix import common_start
from solon.engines.trees import WORTH
from solon.training.adapters import using
from solon.training.batching import answer_positions, pad_right
from solon.training.encoding import Encoded
from solon.training.head import chosen_logprobs
from solon.training.losses import entropy, token_logprobs
from solon.training.stems import Stems, fill_skipped, skipping

Places = tuple[Tensor, Tensor]


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

    def pooled(self, states_TD: Tensor, answer: int) -> Tensor:
        """[D], float32, from the states of a row that ends with `answer` tokens of an answer.

        An answer without tokens is read where its first would have been chosen.
        """
        tokens = 1 if self.pooling == "last" else max(1, answer)
        return states_TD[-tokens:].float().mean(0)


LAST_TOKEN = ReadAt()


@dataclass(frozen=True)
class Pooled:
    """What a reward model sees of B rows, float32 [B, D] each: the answer, and the prompt's last token."""

    answer_BD: Tensor
    prompt_BD: Tensor


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
        with self._reading([e.ids for e in episodes]):
            arguments, where = self._answers(episodes)
            with before_head(self.model, where) as hidden:
                logits_NV = self.model(**arguments).logits[0].float()
        spread_N = entropy(logits_NV.detach() / temperature)
        return Spoken(token_logprobs(logits_NV, chosen_N, temperature), spread_N, hidden[0])

    def states(self, episodes: Sequence[Encoded]) -> Tensor:
        """The hidden states [N, D] from which the answer tokens are chosen, one each, in order."""
        with self._reading([e.ids for e in episodes]):
            arguments, where = self._answers(episodes)
            hidden_ND: Tensor = self.model.base_model(**arguments).last_hidden_state[where]
        return hidden_ND

    def pooled_states(self, episodes: Sequence[Encoded], at: ReadAt) -> Pooled:
        """The states of each episode; a mean is over its answer's tokens."""
        with self._reading([e.ids for e in episodes]):
            arguments, start = self._arguments(
                [e.ids for e in episodes], self._common([e.prompt for e in episodes])
            )
            forward = partial(self.model.base_model, **arguments)
            [hidden_BTD] = hidden_at(self.model, [at.blocks_of(self.model)], forward)
        rows = list(zip(hidden_BTD, episodes, strict=True))
        answers = [at.pooled(hidden_TD[: len(e.ids) - start], len(e.answer)) for hidden_TD, e in rows]
        prompts = [hidden_TD[len(e.prompt) - start - 1].float() for hidden_TD, e in rows]
        return Pooled(torch.stack(answers), torch.stack(prompts))

    def _answers(self, episodes: Sequence[Encoded]) -> tuple[dict[str, Any], Places]:
        """The arguments of a forward pass, and where in its columns the answers are predicted."""
        arguments, start = self._arguments(
            [e.ids for e in episodes], self._common([e.prompt for e in episodes])
        )
        prompts_B = torch.tensor([len(e.prompt) - start for e in episodes])
        row_N, column_N = answer_positions(prompts_B, torch.tensor([len(e.answer) for e in episodes]))
        return arguments, (row_N.to(self.device), column_N.to(self.device))

    def _arguments(self, rows: Sequence[Sequence[int]], start: int) -> tuple[dict[str, Any], int]:
        """Of the rows behind their first `start` tokens, which are computed once and cached.

        No mask: padding is on the right, and in a causal model nothing real sees what stands behind it.
        """
        arguments: dict[str, Any] = {**self._entering(rows, start), "use_cache": False}
        if start:
            cache = DynamicCache(config=self.model.config)
            first = self._entering([rows[0]], 0, start)
            self.model.base_model(**first, past_key_values=cache, use_cache=True)
            if "inputs_embeds" in first and self.stems:
                fill_skipped(cache, self.stems.depth, start, first["inputs_embeds"])
            cache.batch_repeat_interleave(len(rows))
            arguments |= {"past_key_values": cache, "use_cache": True}
        return arguments, start

    def _entering(
        self, rows: Sequence[Sequence[int]], start: int, end: int | None = None
    ) -> dict[str, Tensor]:
        """What the first block that runs is given of these columns: token ids, or the stems' states."""
        if self.stems and self.stems.covers(rows):
            states = [self.stems.of(row)[start:end] for row in rows]
            return {"inputs_embeds": pad_sequence(states, batch_first=True)}
        ids_BT, _ = pad_right([row[start:end] for row in rows], 0)
        return {"input_ids": ids_BT.to(self.device)}

    @contextmanager
    def _reading(self, rows: Sequence[Sequence[int]]) -> Iterator[None]:
        """The adapter is on, and the blocks that the stems stand for are off."""
        depth = self.stems.depth if self.stems and self.stems.covers(rows) else 0
        with using(self.model, self.adapter), skipping(self.model, depth):
            yield

    def _common(self, rows: Sequence[Sequence[int]]) -> int:
        if len(rows) < 2 or not shares_starts(self.model) or divided(self.model):
            return 0  # In a divided trunk every pass with a gradient has its own backward pass
        shared = common_start(rows)
        return shared if shared >= WORTH else 0
