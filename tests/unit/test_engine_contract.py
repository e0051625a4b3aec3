"""What every engine owes its callers, whichever it is: results of all requests, each once, of one meaning."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from solon.engines.base import (
    Engine,
    GenerateRequest,
    OptionRequest,
    ScoreRequest,
    completions,
    scores,
    user,
)
from solon.engines.local import LocalEngine, open_engine
from solon.engines.opening import open_role
from solon.engines.turns import Turns
from solon.engines.vllm import VllmEngine, open_vllm
from solon.errors import RunError, UsageError
from solon.models import resolve
from solon.roles import Role, VllmSettings
from solon.settings import Sampling
from tests.tiny import build_tiny

GREEDY = Sampling(max_tokens=6, temperature=0.0)
WARM = Sampling(max_tokens=6, temperature=1.0)
PART = VllmSettings(memory=0.2)  # Two models are held at once
TEXTS = ["Hello", "How are you today?", "Why?", "Tell me about the sea"]


@dataclass
class _Params:
    """Takes what `vllm.SamplingParams` takes."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    detokenize: bool = True


class _LikeVllm:
    """`vllm.LLM.generate` in its form, computed by a local engine's model one row at a time, greedily."""

    def __init__(self, engine: LocalEngine) -> None:
        self._model = engine.model

    def generate(self, prompts: list[Any], params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        assert (use_tqdm, lora_request) == (False, None)
        each = params if isinstance(params, list) else [params] * len(prompts)
        return [self._one(p["prompt_token_ids"], one) for p, one in zip(prompts, each, strict=True)]

    def _one(self, ids: list[int], params: _Params) -> Any:
        told = None
        if params.prompt_logprobs is not None:
            logp = self._logp(ids)
            told = [None, *({t: SimpleNamespace(logprob=float(logp[k, t]))} for k, t in enumerate(ids[1:]))]
        new: list[int] = []
        places = []
        while len(new) < params.max_tokens and not (new and new[-1] in params.stop_token_ids):
            row = self._logp([*ids, *new])[-1]
            new.append(int(row.argmax()))
            places.append({new[-1]: SimpleNamespace(logprob=float(row[new[-1]]))})
        finish = "stop" if new[-1] in params.stop_token_ids else "length"
        output = SimpleNamespace(token_ids=new, logprobs=places, finish_reason=finish)
        return SimpleNamespace(outputs=[output], prompt_token_ids=ids, prompt_logprobs=told)

    @torch.inference_mode()
    def _logp(self, ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self._model(torch.tensor([ids])).logits[0]
        return logits.log_softmax(-1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of heads of 64, as real models have: vLLM's attention takes no narrower ones than 32."""
    return build_tiny(tmp_path_factory.mktemp("contract") / "tiny", width=256)


@pytest.fixture(scope="module")
def local_engine(model_folder: Path) -> LocalEngine:
    return open_engine(resolve(str(model_folder)), "cpu", torch.float32, 8192)


@pytest.fixture(params=["local", "like_vllm", "vllm"])
def engine(request: pytest.FixtureRequest, local_engine: LocalEngine, model_folder: Path) -> Iterator[Engine]:
    """The local engine, vLLM's adapter on a stand-in of its form, and vLLM itself where it is installed."""
    if request.param == "local":
        yield local_engine
    elif request.param == "like_vllm":
        turns = Turns(local_engine.tokenizer, "tiny", local_engine.context)
        yield VllmEngine(_LikeVllm(local_engine), _Params, turns, [local_engine.tokenizer.eos_token_id])
    else:
        pytest.importorskip("vllm", reason="vLLM is not installed")
        yield open_vllm(resolve(str(model_folder)), "float32", PART)


def _asked(sampling: Sampling) -> list[GenerateRequest]:
    return [GenerateRequest(user(text), sampling, i) for i, text in enumerate(TEXTS)]


def test_every_request_has_one_completion_of_consistent_parts(engine: Engine) -> None:
    found = list(engine.generate(_asked(WARM)))
    assert sorted(done.index for done in found) == [0, 1, 2, 3]
    for done in found:
        assert len(done.token_ids) == len(done.logprobs) == done.new_tokens <= WARM.max_tokens
        assert (done.finish == "length") == (done.new_tokens == WARM.max_tokens) or done.finish == "stop"
        assert all(logp <= 0 for logp in done.logprobs)
        assert done.prompt_tokens == engine.length(user(TEXTS[done.index]))


def test_a_greedy_answer_is_the_same_whatever_runs_it(engine: Engine, local_engine: LocalEngine) -> None:
    found, expected = completions(engine, _asked(GREEDY)), completions(local_engine, _asked(GREEDY))
    for ours, local in zip(found, expected, strict=True):
        assert ours == local
        assert ours.logprobs == pytest.approx(local.logprobs, abs=1e-3)


def test_scores_are_those_of_the_local_engine(engine: Engine, local_engine: LocalEngine) -> None:
    requests = [ScoreRequest(user(text), "a good answer") for text in TEXTS]
    for ours, local in zip(scores(engine, requests), scores(local_engine, requests), strict=True):
        assert ours.logprobs == pytest.approx(local.logprobs, abs=1e-3)
        assert (ours.token_ids, ours.prompt_tokens, ours.index) == (
            local.token_ids,
            local.prompt_tokens,
            local.index,
        )


def test_options_are_those_of_the_local_engine(engine: Engine, local_engine: LocalEngine) -> None:
    requests = [OptionRequest(user(text), "", ("(A)", "(B)")) for text in TEXTS]
    found, expected = engine.option_logprobs(requests), local_engine.option_logprobs(requests)
    for ours, local in zip(found, expected, strict=True):
        assert ours == pytest.approx(local, abs=1e-3)


def test_a_text_beyond_the_context_is_refused(engine: Engine) -> None:
    long = GenerateRequest(user("word " * 5000), GREEDY, 0)
    with pytest.raises(UsageError, match=r"does not fit into the context of .*tiny"):
        completions(engine, [long])


def test_vllm_answers_as_the_model_with_the_adapter_merged(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    source = resolve(str(model_folder))
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    lora = get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=8))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    lora.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "tiny-merged"
    lora.merge_and_unload().save_pretrained(merged)
    open_engine(source, "cpu", torch.float32, 8192).tokenizer.save_pretrained(merged)
    expected = open_engine(resolve(str(merged)), "cpu", torch.float32, 8192)
    found = open_vllm(source, "float32", PART, adapter=tmp_path / "adapter")
    pairs = zip(completions(found, _asked(GREEDY)), completions(expected, _asked(GREEDY)), strict=True)
    for ours, local in pairs:
        assert ours == local
        assert ours.logprobs == pytest.approx(local.logprobs, abs=1e-3)


def test_vllm_is_told_what_it_may_take_and_loads_a_model_once(
    monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """By a stand-in for the package that notes with what it is asked."""
    asked: list[dict[str, Any]] = []

    def load(**given: Any) -> Any:
        asked.append(given)
        return SimpleNamespace(model_config=SimpleNamespace(max_model_len=given["max_model_len"] or 512))

    named = {"LLM": load, "SamplingParams": _Params, "LoRARequest": lambda *parts: parts}
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**named))
    source = resolve(str(tiny_model_folder))
    role = Role(engine="vllm", vllm=VllmSettings(memory=0.4, gpus=2, context=256))
    engine = open_role("judge", role, source, "auto", "float32", 4096)
    assert (asked[0]["gpu_memory_utilization"], asked[0]["tensor_parallel_size"]) == (0.4, 2)
    assert (asked[0]["load_format"], asked[0]["trust_remote_code"]) == ("safetensors", False)
    assert isinstance(engine, VllmEngine)
    assert engine.context == 255, "one token is vLLM's own where it scores"
    assert open_role("critic", role, source, "auto", "float32", 4096) is engine
    (tmp_path / "adapter_config.json").write_text('{"r": 20}', encoding="utf-8")
    open_vllm(source, "float32", role.vllm, tmp_path)
    assert [given.get("max_lora_rank") for given in asked] == [None, 32]
    headed = tmp_path / "headed"
    headed.mkdir()
    for layers in (["q_proj", "model.lm_head"], ".*(q_proj|lm_head)"):
        told = {"r": 8, "target_modules": layers}
        (headed / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(UsageError, match="output layer when it scores"):
            list(open_vllm(source, "float32", role.vllm, headed).score([ScoreRequest(user("a"), "b")]))
        open_vllm.cache_clear()
    open_vllm.cache_clear()


class _Failing:
    """Like `vllm.LLM`, but every request ends as told, and every text is as probable as told."""

    def __init__(self, reason: str = "stop", logp: float = -1.0, error: Exception | None = None) -> None:
        self._reason, self._logp, self._error = reason, logp, error

    def generate(self, prompts: list[Any], params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        if self._error:
            raise self._error
        place = SimpleNamespace(logprob=self._logp)
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(token_ids=[5], logprobs=[{5: place}], finish_reason=self._reason)],
                prompt_token_ids=prompt["prompt_token_ids"],
                prompt_logprobs=[None, *({token: place} for token in prompt["prompt_token_ids"][1:])],
            )
            for prompt in prompts
        ]


def test_what_vllm_gives_up_refuses_or_cannot_compute_is_an_error(local_engine: LocalEngine) -> None:
    def on(llm: _Failing) -> VllmEngine:
        return VllmEngine(llm, _Params, Turns(local_engine.tokenizer, "tiny", 512), [2])

    assert completions(on(_Failing()), _asked(GREEDY)[:1])[0].finish == "stop"
    with pytest.raises(RunError, match="gave up a request"):
        completions(on(_Failing("abort")), _asked(GREEDY))
    with pytest.raises(RunError, match="refuses a request"):
        completions(on(_Failing(error=ValueError("prompt too long"))), _asked(GREEDY))
    with pytest.raises(RunError, match="no numbers"):
        scores(on(_Failing(logp=float("nan"))), [ScoreRequest(user("a"), "b")])


def test_without_vllm_the_way_to_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[vllm\]'; or set engine: local"):
        open_vllm(resolve(str(tiny_model_folder)), "float32")
