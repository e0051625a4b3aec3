"""An engine on a transformers model in this process: generates, scores and reads hidden states.

Requests are batched by like length within a budget of tokens. Lengths are explicit everywhere: the pad
token may be the end token, and a mask made from ids would hide real ends. Batches are put together from
the requests' content, so results do not depend on their order; in float32 they do not depend on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from solon.engines.base import Completion, Conversation, GenerateRequest, Progress, Score, ScoreRequest
from solon.engines.hooks import before_head, blocks, hidden_before, neutral
from solon.engines.prefix import prefill
from solon.engines.sampling import NextToken
from solon.errors import RunError, UsageError
from solon.models import ModelSource, load_model, load_tokenizer
from solon.recipe import Sampling
from solon.training.batching import answer_positions, budget_batches, pad_right

_HEAD_ROWS = 512  # Rows of logits that are float32 at once.


@dataclass(frozen=True)
class _Prompt:
    """A generation request as token ids, and its place among the requests."""

    ids: tuple[int, ...]
    seed: int
    index: int


@dataclass(frozen=True)
class _Row:
    """A score request as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer


class LocalEngine:
    """Implements `Engine` and `HiddenStates` of `solon.engines.base`.

    `tokens_generated` and `tokens_read` count since the start, prompts and scored texts as read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        batch_tokens: int = 8192,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.tokens_generated = 0
        self.tokens_read = 0
        self._name = name
        self._batch_tokens = batch_tokens
        self._progress: Progress = progress or (lambda done: None)
        self._ends = _end_tokens(model, tokenizer)
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def name(self) -> str:
        return self._name

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """The next turns, in the order of the requests.

        Raises:
            UsageError: a prompt and its new tokens do not fit into the model's context.
            RunError: the model's logits are not numbers.
        """
        done: dict[int, Completion] = {}
        for sampling in dict.fromkeys(request.sampling for request in requests):
            prompts = [
                _Prompt(self._prompt(r.conversation, sampling.max_tokens), r.seed, index)
                for index, r in enumerate(requests)
                if r.sampling == sampling
            ]
            prompts.sort(key=lambda p: (len(p.ids), p.ids, p.seed))
            lengths = [len(p.ids) + sampling.max_tokens for p in prompts]
            for batch in budget_batches(lengths, self._batch_tokens):
                chosen = [prompts[i] for i in batch]
                completions = self._generate(chosen, sampling)
                done.update(zip((p.index for p in chosen), completions, strict=True))
                self._progress(len(batch))
        return [done[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[_Prompt], sampling: Sampling) -> list[Completion]:
        layout, cache = prefill(self.model, [p.ids for p in prompts], self._ends[0])
        width, device = layout.ids_BT.shape[1], self.model.device
        chooser = NextToken(sampling, [p.seed for p in prompts], width, device)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=list(self._ends),
            pad_token_id=self._ends[0],
        )
        with neutral(self.model):
            all_BT = self.model.generate(
                input_ids=layout.ids_BT.to(device),
                attention_mask=layout.mask_BT.to(device),
                past_key_values=cache,
                generation_config=settings,
                logits_processor=[chooser],
            )
        if chooser.broken:
            raise self._not_numbers()
        return [self._completion(p, new) for p, new in zip(prompts, all_BT[:, width:].tolist(), strict=True)]

    def _completion(self, prompt: _Prompt, new: list[int]) -> Completion:
        """Cut behind the first end token: what follows it is padding."""
        end = next((i for i, token in enumerate(new) if token in self._ends), None)
        ids = tuple(new if end is None else new[: end + 1])
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
        self.tokens_generated += len(ids)
        self.tokens_read += len(prompt.ids)
        return Completion(text, ids, "length" if end is None else "stop", len(prompt.ids))

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of the continuations' tokens, without an end token.

        Raises:
            UsageError: a text does not fit into the model's context.
            RunError: a continuation has no token, or the model's logits are not numbers.
        """
        rows = [self._row(request) for request in requests]
        done: dict[int, Score] = {}
        for batch in self._batches(rows):
            logp_N = self._logprobs([rows[i] for i in batch])
            if not bool(logp_N.isfinite().all()):
                raise self._not_numbers()
            parts = torch.split(logp_N, [len(rows[i].answer) for i in batch])
            done.update((i, Score(tuple(part.tolist()))) for i, part in zip(batch, parts, strict=True))
            self._progress(len(batch))
        return [done[index] for index in range(len(rows))]

    def _logprobs(self, rows: Sequence[_Row]) -> Tensor:
        """float32 [N] on the CPU: log-probabilities of all answer tokens, row by row."""
        prompts_B = torch.tensor([len(row.prompt) for row in rows])
        answers_B = torch.tensor([len(row.answer) for row in rows])
        where = answer_positions(prompts_B, answers_B)
        with before_head(self.model, where):
            logits_NV = self._forward(rows).logits[0]
        chosen_N = torch.tensor([token for row in rows for token in row.answer], device=logits_NV.device)
        parts = []
        for logits, chosen in zip(
            torch.split(logits_NV, _HEAD_ROWS), torch.split(chosen_N, _HEAD_ROWS), strict=True
        ):
            parts.append(torch.log_softmax(logits.float(), -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        return torch.cat(parts).cpu()

    @torch.inference_mode()
    def hidden_means(self, requests: Sequence[ScoreRequest], layer: float) -> NDArray[np.float64]:
        """Mean hidden state over each continuation's tokens, float64 [len(requests), width].

        `layer` is a depth from 0 (embeddings) to 1 (last block, normed), rounded to a block: the hidden
        state that goes into the next one. The blocks above are not computed.

        Raises:
            UsageError: a text does not fit into the context, or `layer` is not between 0 and 1.
            RunError: a continuation has no token, or the hidden states are not numbers.
        """
        if not 0 <= layer <= 1:
            raise UsageError(f"layer is {layer}: give a depth between 0 (embeddings) and 1 (last block).")
        rows = [self._row(request) for request in requests]
        width = self.model.config.get_text_config().hidden_size
        means = np.zeros((len(rows), width), dtype=np.float64)
        for batch in self._batches(rows):
            hidden_BTD = self._hidden([rows[i] for i in batch], layer)
            for hidden_TD, i in zip(hidden_BTD, batch, strict=True):
                start, stop = len(rows[i].prompt), len(rows[i].ids)
                means[i] = hidden_TD[start:stop].cpu().double().mean(0).numpy()
            self._progress(len(batch))
        if not np.isfinite(means).all():
            raise self._not_numbers()
        return means

    def _hidden(self, rows: Sequence[_Row], layer: float) -> Tensor:
        trunk, layers = self.model.base_model, blocks(self.model)
        depth = round(layer * len(layers))
        if depth < len(layers):
            return hidden_before(layers[depth], lambda: self._forward(rows, trunk))
        hidden_BTD: Tensor = self._forward(rows, trunk).last_hidden_state
        return hidden_BTD

    def _forward(self, rows: Sequence[_Row], module: Any = None) -> Any:
        """One pass over right-padded rows. No mask: in a causal model nothing real sees what follows it."""
        ids_BT, _ = pad_right([row.ids for row in rows], self._ends[0])
        self.tokens_read += sum(len(row.ids) for row in rows)
        return (module or self.model)(input_ids=ids_BT.to(self.model.device), use_cache=False)

    def _batches(self, rows: Sequence[_Row]) -> list[list[int]]:
        """Indices of the rows in batches that depend on the rows alone, not on their order."""
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), rows[i].ids))
        lengths = [len(rows[i].ids) for i in order]
        return [[order[j] for j in batch] for batch in budget_batches(lengths, self._batch_tokens)]

    def _row(self, request: ScoreRequest) -> _Row:
        answer = tuple(self.tokenizer(request.continuation, add_special_tokens=False)["input_ids"])
        if not answer:
            raise RunError(
                f"an empty continuation of “{_first_words(request.conversation)}” cannot be scored. "
                "Leave empty texts out."
            )
        return _Row(self._prompt(request.conversation, len(answer)), answer)

    def _prompt(self, conversation: Conversation, room: int) -> tuple[int, ...]:
        """Token ids up to the assistant's header; `room` tokens must fit behind them."""
        turns = [{"role": m.role, "content": m.content} for m in conversation]
        try:
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise UsageError(
                f"{self.name}: its chat template refuses the conversation “{_first_words(conversation)}” "
                f"({error}). Use a model whose template takes these roles."
            ) from error
        if self._context is not None and len(ids) + room > self._context:
            raise UsageError(
                f"“{_first_words(conversation)}” has {len(ids)} tokens; with {room} more it does not fit "
                f"into the context of {self.name}, {self._context} tokens. Shorten it or lower max_tokens."
            )
        return tuple(ids)

    def _not_numbers(self) -> RunError:
        return RunError(
            f"{self.name} computes values that are no numbers. Its weights are damaged, or overflow in "
            f"{self.model.dtype}: try dtype: float32."
        )


def open_engine(source: ModelSource, device: str, dtype: torch.dtype, batch_tokens: int) -> LocalEngine:
    """An engine on a model that is loaded for it alone. Errors are those of `solon.models.load_model`."""
    return LocalEngine(load_model(source, device, dtype), load_tokenizer(source), source.name, batch_tokens)


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a turn, the tokenizer's own first: chat models may name several."""
    named = getattr(model.generation_config, "eos_token_id", None)
    more = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys([int(tokenizer.eos_token_id), *(int(token) for token in more)]))


def _first_words(conversation: Conversation) -> str:
    return " ".join(conversation[-1].content.split()[:8]) if conversation else ""
