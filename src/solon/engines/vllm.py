"""An engine on vLLM in this process, for GPUs. vLLM is an optional extra and imported only here.

vLLM batches, shares prefixes and keeps the GPU busy by itself: requests are handed over in large portions.
It holds no hidden states for us, so the judge linear_probe needs the local engine.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from solon.engines.base import (
    Completion,
    Conversation,
    GenerateRequest,
    OptionRequest,
    Score,
    ScoreRequest,
    options_by_score,
)
from solon.engines.turns import Turns
from solon.errors import RunError, UsageError
from solon.models import NEXT_QUESTION, ModelSource, load_tokenizer
from solon.roles import VllmSettings

_PORTION = 1024  # Requests handed over at once: results are yielded, and rows written, after each portion.
_SEEDS = 2**31
_DEFAULTS = VllmSettings()
_OUTPUT = frozenset({"lm_head", "embed_tokens"})  # The same weights where they are tied
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # That vLLM takes as the largest

Params = Callable[..., Any]


class VllmEngine:
    """Implements `Engine` of `solon.engines.base` on an object like `vllm.LLM`."""

    def __init__(
        self,
        llm: Any,
        params: Params,
        turns: Turns,
        ends: Sequence[int],
        adapter: Any = None,
        scores: bool = True,
    ) -> None:
        """`params` makes sampling parameters (`vllm.SamplingParams`), `adapter` is a `LoRARequest`.

        `scores` says whether prompt log-probabilities are those of the model with the adapter.
        """
        self.tokens_generated = 0
        self.tokens_read = 0
        self.context = turns.context
        self._llm = llm
        self._params = params
        self._turns = turns
        self._ends = tuple(ends)
        self._adapter = adapter
        self._scores = scores

    @property
    def name(self) -> str:
        return self._turns.name

    def length(self, conversation: Conversation) -> int:
        """Tokens of the conversation up to the assistant's header."""
        return len(self._turns.ids(conversation))

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        """The next turns, portion by portion.

        Raises:
            UsageError: a prompt and its new tokens do not fit into the model's context.
            RunError: vLLM refuses a request or gives one up.
        """
        for index, request in self._portions(requests, self._generated):
            yield self._completion(index, request)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of the continuations' tokens, without an end token, portion by portion.

        Raises:
            UsageError: a text does not fit into the context, or the adapter changes the output layer.
            RunError: a continuation has no token, vLLM refuses a request, or its values are not numbers.
        """
        if not self._scores:
            # https://github.com/vllm-project/vllm/issues/51594: dropped without a word
            raise UsageError(
                f"{self.name}: vLLM leaves out what an adapter does to the output layer when it scores. "
                "Merge the adapter into the model."
            )
        for index, (row, told) in self._portions(requests, self._scored):
            start = len(row.prompt)
            logprobs = [
                _logprob(told.prompt_logprobs[start + k], token) for k, token in enumerate(row.answer)
            ]
            if not all(math.isfinite(logp) for logp in logprobs):
                raise RunError(
                    f"{self.name} computes values that are no numbers. Its weights are damaged, or overflow: "
                    "try dtype: float32."
                )
            yield Score(tuple(logprobs), row.answer, start, index)

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probabilities of options by scoring them.

        Raises:
            RunError: the tokenizer writes two options with the same tokens; else as in `score`.
        """
        self._turns.check_options(requests)
        return options_by_score(self, requests)

    def _portions(
        self, requests: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> Iterator[tuple[int, Any]]:
        for start in range(0, len(requests), _PORTION):
            yield from enumerate(work(requests[start : start + _PORTION]), start)

    def _generated(self, requests: Sequence[GenerateRequest]) -> Sequence[Any]:
        prompts = [self._turns.prompt(r.conversation, r.sampling.max_tokens) for r in requests]
        params = [
            self._params(
                max_tokens=r.sampling.max_tokens,
                temperature=r.sampling.temperature,
                top_p=r.sampling.top_p,
                seed=r.seed % _SEEDS,
                logprobs=0,
                stop_token_ids=list(self._ends),
                stop=[NEXT_QUESTION] if self._turns.plain else [],
                detokenize=self._turns.plain,  # Which looking for a text to stop at needs
            )
            for r in requests
        ]
        return self._ask(prompts, params)

    def _scored(self, requests: Sequence[ScoreRequest]) -> Sequence[Any]:
        rows = [self._turns.row(request) for request in requests]
        params = self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        self.tokens_read += sum(len(row.ids) for row in rows)
        return list(zip(rows, self._ask([row.ids for row in rows], params), strict=True))

    def _ask(self, prompts: Sequence[Sequence[int]], params: Any) -> Sequence[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            found: Sequence[Any] = self._llm.generate(
                given, params, use_tqdm=False, lora_request=self._adapter
            )
        except ValueError as error:
            raise RunError(f"{self.name}: vLLM refuses a request ({error}).") from error
        return found

    def _completion(self, index: int, told: Any) -> Completion:
        output = told.outputs[0]
        ids = tuple(int(token) for token in output.token_ids)
        logprobs = tuple(_logprob(place, token) for place, token in zip(output.logprobs, ids, strict=True))
        if output.finish_reason not in ("stop", "length"):
            raise RunError(
                f"{self.name}: vLLM gave up a request (finish reason {output.finish_reason}). Run again: "
                "what is finished is kept."
            )
        answer = self._turns.answer(ids, output.finish_reason == "stop")
        prompt_tokens = len(told.prompt_token_ids)
        self.tokens_generated += len(ids)
        self.tokens_read += prompt_tokens
        kept = answer.tokens
        return Completion(answer.text, ids[:kept], answer.finish, prompt_tokens, kept, logprobs[:kept], index)


def _logprob(place: Mapping[int, Any], token: int) -> float:
    return float(place[token].logprob)


@cache
def open_vllm(
    source: ModelSource, dtype: str, settings: VllmSettings = _DEFAULTS, adapter: Path | None = None
) -> VllmEngine:
    """An engine on a model that vLLM loads; `adapter` is a LoRA adapter in PEFT's format.

    A process has one of the same model and settings for all who ask: vLLM keeps its share of the GPU.

    Raises:
        UsageError: vLLM is not installed, or the adapter's folder holds none.
        RunError: vLLM cannot load the model.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise UsageError(
            f"engine: vllm needs vLLM, which cannot be imported ({error}). Install it on a machine with a "
            "GPU, in the project's folder: pip install '.[vllm]'; or set engine: local."
        ) from error
    tokenizer = load_tokenizer(source)
    config = _config(adapter) if adapter else {}
    more = {"enable_lora": True, "max_lora_rank": _rank(config["r"])} if adapter else {}
    try:
        llm = LLM(
            model=source.path,
            dtype=dtype,
            load_format="safetensors",
            trust_remote_code=False,
            enable_prefix_caching=True,
            gpu_memory_utilization=settings.memory,
            tensor_parallel_size=settings.gpus,
            max_model_len=settings.context,
            **more,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{source.name}: vLLM cannot load it ({error}). Where memory is short, change vllm.memory, "
            "vllm.context or vllm.gpus of the role; or try engine: local."
        ) from error
    lora = LoRARequest(adapter.name, 1, str(adapter)) if adapter else None
    # To score a text vLLM must write one token behind it.
    turns = Turns(tokenizer, source.name, llm.model_config.max_model_len - 1)
    scores = not (_OUTPUT & {*config.get("targets", ()), *config.get("saved", ())})
    return VllmEngine(llm, SamplingParams, turns, [tokenizer.eos_token_id], lora, scores)


def _rank(rank: int) -> int:
    """The least that vLLM can be told to make room for."""
    return next((known for known in _LORA_RANKS if known >= rank), rank)


def _config(adapter: Path) -> dict[str, Any]:
    """An adapter's rank `r`, and the names of the layers that it `targets` and that are `saved` with it."""
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        targets, saved = found.get("target_modules") or (), found.get("modules_to_save") or ()
        return {"r": int(found["r"]), "targets": _names(targets), "saved": _names(saved)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise UsageError(f"{adapter}: no adapter in PEFT's format ({error}).") from error


def _names(layers: Any) -> list[str]:
    """The last parts of layers' names; of a pattern, which PEFT allows, those of the output layer it fits."""
    if isinstance(layers, str):
        return [
            name for name in _OUTPUT if re.fullmatch(layers, name) or re.fullmatch(layers, f"model.{name}")
        ]
    return [str(name).rsplit(".", 1)[-1] for name in layers]
