"""Generation, a critique-revision chain and scoring, beside transformers as it is usually called.

Run: python bench/generate.py [--repeat 3] [--dtype auto] [--device auto] [--part PART ...]

Both sides have the same model, prompts and sampling settings, and answers end when they end.
- answers: 64 red-team prompts, one answer each of up to 128 tokens.
- chain: 64 prompts through two rounds of critique and revision with three worked examples. Both engines
  are driven by the same stage code.
- scores: 512 answers as the likelihood judge asks for them: both answers of comparisons, alone, under a
  principle and under its contrary. The peer makes one padded forward pass for each 16, in the order of the
  input.
- samples: 512 scores again, of eight sampled answers of up to 128 tokens to each of the 64 prompts.
The peer samples in batches of 16, in the order of the input. Sides take turns; a figure is the median of the
repetitions' ratios. Rates are tokens generated (answers, chain) and answers (scores, samples) a second.
In bfloat16 `_error` says how far the log-probabilities of both sides are from the same model's in float32.
`share` is the time that the matrix products of the tokens alone would take, over the time taken: their size,
over the speed of a product of 2048 x 2048 matrices in the same type.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import prompts as shipped
import torch
from peers import left_padded
from record import device_options, peak_memory_mb, report

from solon.constitution import load_constitution
from solon.engines.base import Completion, GenerateRequest, Score, ScoreRequest, completions, scores
from solon.engines.local import LocalEngine, open_engine
from solon.feedback.base import Question
from solon.feedback.likelihood import score_requests
from solon.models import pick_device, pick_dtype, resolve
from solon.pipeline import Inputs
from solon.recipe import Recipe, Revise, load_recipe
from solon.records import Finish, Prompt
from solon.settings import Sampling
from solon.stages.common import asks
from solon.stages.revise import Reviser

BATCH, PROMPTS, SCORES, EXACT = 16, 64, 512, 64
PARTS = ("answers", "scores", "samples", "chain")
SAMPLING = Sampling(max_tokens=128, temperature=0.7, top_p=0.95)


class Plain(LocalEngine):
    """The peer: the same model as it is usually called."""

    settings: ClassVar[dict[str, Any]] = {}  # More for transformers' `generate`

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        for start in range(0, len(requests), BATCH):
            for place, done in enumerate(self._sample(requests[start : start + BATCH]), start):
                yield replace(done, index=place)

    def _sample(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        sampling = requests[0].sampling
        prompts = [self._turns.prompt(r.conversation, sampling.max_tokens) for r in requests]
        pad = self._ends[0]
        ids, mask = left_padded(prompts, pad, self.model.device)
        torch.manual_seed(requests[0].seed)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            pad_token_id=pad,
            **self.settings,
        )[:, ids.shape[1] :]
        return [self._answer(p, row) for p, row in zip(prompts, out.tolist(), strict=True)]

    def _answer(self, prompt: Sequence[int], ids: Sequence[int]) -> Completion:
        ends = [i for i, token in enumerate(ids) if token in self._ends]
        kept = ids[: ends[0] + 1] if ends else ids
        self.tokens_generated += len(kept)
        self.tokens_read += len(prompt)
        finish: Finish = "stop" if ends else "length"
        return Completion(self._turns.text(kept), tuple(kept), finish, len(prompt), len(kept))

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        for start in range(0, len(requests), BATCH):
            rows = self._rows(requests[start : start + BATCH])
            width = max(len(row.ids) for row in rows)
            ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
            mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
            device = self.model.device
            logits = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).logits
            logp_BTV = logits[:, :-1].float().log_softmax(-1)
            chosen_BT = logp_BTV.gather(-1, ids[:, 1:, None].to(device)).squeeze(-1)
            for place, (row, chosen_T) in enumerate(zip(rows, chosen_BT, strict=True), start):
                answer_T = chosen_T[len(row.prompt) - 1 : len(row.ids) - 1]
                yield Score(tuple(answer_T.tolist()), index=place)


@dataclass(frozen=True)
class Took:
    """One side's repetition: seconds, tokens generated and read."""

    seconds: float
    generated: int
    read: int


def timed(engine: LocalEngine, work: Callable[[LocalEngine], object]) -> Took:
    engine.tokens_generated = engine.tokens_read = 0
    start = time.perf_counter()
    work(engine)
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - start, engine.tokens_generated, engine.tokens_read)


def product_speed(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of a 2048 x 2048 x 2048 product, the median of ten; on a GPU each is one of a series."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    series = 50 if device.startswith("cuda") else 1
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(series):
            a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / series)
    return 2 * 2048**3 / statistics.median(seconds)


@dataclass(frozen=True)
class Bench:
    solon: LocalEngine
    plain: Plain
    repeat: int
    about: dict[str, Any]
    speed: float

    def compare(
        self, name: str, work: Callable[[LocalEngine], object], unit: Callable[[Took], float]
    ) -> None:
        """Time both in turn; report rates, ratio and share."""
        pairs = [(timed(self.solon, work), timed(self.plain, work)) for _ in range(self.repeat)]
        rates = [tuple(unit(took) / took.seconds for took in pair) for pair in pairs]
        solon, peer = (statistics.median(rate[side] for rate in rates) for side in (0, 1))
        ratio = statistics.median(ours / theirs for ours, theirs in rates)
        report("generate", name, solon, peer, ratio, share=self._share([o for o, _ in pairs]), **self.about)

    def generation(self, name: str, work: Callable[[LocalEngine], object]) -> None:
        """Time generation, in tokens a second."""
        self.compare(f"{name}_tokens_per_second", work, lambda took: float(took.generated))

    def _share(self, runs: Sequence[Took]) -> float:
        """Read tokens pass the blocks, generated ones the head as well; attention itself is not counted."""
        model = self.solon.model
        head: int = model.get_output_embeddings().weight.numel()
        inside: int = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2) - head
        ideal = [2 * (inside * (r.read + r.generated) + head * r.generated) / self.speed for r in runs]
        return statistics.median(i / r.seconds for i, r in zip(ideal, runs, strict=True))

    def scores(self, name: str, requests: Sequence[ScoreRequest]) -> None:
        """Time scoring, and tell how far log-probabilities are apart, in nats a token."""
        self.compare(f"{name}_per_second", lambda e: scores(e, requests), lambda _: float(len(requests)))
        apart = differences(scores(self.solon, requests), scores(self.plain, requests))
        more = {"mean": statistics.mean(apart), **self.about}
        report("generate", f"{name}_logprob_difference", max(apart), None, None, **more)

    def errors(self, name: str, requests: Sequence[ScoreRequest]) -> None:
        """How far each side is from the same model in float32, in nats a token: the mean, and the most."""
        exact = open_engine(resolve("embedded"), self.about["device"], torch.float32, BATCH * 256)
        true = scores(exact, requests)
        ours, theirs = (differences(scores(e, requests), true) for e in (self.solon, self.plain))
        solon, peer = statistics.mean(ours), statistics.mean(theirs)
        most = {"most_solon": max(ours), "most_peer": max(theirs)}
        report("generate", f"{name}_error", solon, peer, solon / peer, **most, **self.about)


def differences(ours: Sequence[Score], theirs: Sequence[Score]) -> list[float]:
    """Of the log-probabilities, one for each token."""
    return [
        abs(a - b)
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x.logprobs, y.logprobs, strict=True)
    ]


def chain(recipe: Recipe, inputs: Inputs, prompts: Sequence[Prompt]) -> Callable[[LocalEngine], object]:
    settings = Revise(
        rounds=2,
        demonstrations=3,
        candidates=1,
        answer=SAMPLING,
        critic=SAMPLING,
        revision=SAMPLING,
        batch=64,
    )
    changed = recipe.model_copy(update={"revise": settings})
    return lambda engine: Reviser(changed, inputs, engine, engine, None).work(prompts)


def judged(count: int) -> list[ScoreRequest]:
    """What the likelihood judge asks about the constitution's comparisons, `count` requests."""
    constitution = load_constitution("harmless")
    named = {p.id: p for p in constitution.principles}
    chosen = constitution.comparisons("training")
    questions = [Question(named[c.principle], c.prompt, c.better, c.worse) for c in chosen]
    return score_requests(questions, ("nothing", "follow", "break"))[:count]


def samples(engine: LocalEngine, texts: Sequence[str]) -> list[ScoreRequest]:
    """Eight sampled answers to each prompt, to be scored."""
    asked = [GenerateRequest(asks(text), SAMPLING, i) for text in texts for i in range(8)]
    done = completions(engine, asked)
    return [ScoreRequest(r.conversation, c.text) for r, c in zip(asked, done, strict=True) if c.text]


def opened(options: argparse.Namespace) -> Bench:
    """Both sides on the embedded model, as the command line says: repeat, device and dtype."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    solon = open_engine(resolve("embedded"), device, dtype, load_recipe("demo")[0].batch_tokens)
    about = {"dtype": str(dtype).removeprefix("torch."), "device": device}
    return Bench(solon, beside(Plain, solon), options.repeat, about, product_speed(device, dtype))


def beside(peer: type[Plain], solon: LocalEngine) -> Plain:
    """The peer on the same weights."""
    return peer(solon.model, solon.tokenizer, peer.__name__.lower())


def red_team_requests() -> list[GenerateRequest]:
    return [
        GenerateRequest(asks(text), SAMPLING, i) for i, text in enumerate(shipped.texts("red_team")[:PROMPTS])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="of the comparisons")
    device_options(parser)
    options = parser.parse_args()
    bench = opened(options)
    requests, texts = red_team_requests(), shipped.texts("red_team")[:PROMPTS]
    for engine in (bench.solon, bench.plain):
        completions(engine, requests[:BATCH])  # Warms up
    if "answers" in options.part:
        bench.generation("answers", lambda e: completions(e, requests))
    if "scores" in options.part:
        bench.scores("scores", judged(SCORES))
    if "samples" in options.part:
        bench.scores("samples", samples(bench.solon, texts))
    if "chain" in options.part:
        recipe, _ = load_recipe("demo")
        inputs = Inputs(load_constitution(recipe.constitution), resolve("embedded"), {}, Path(), {})
        bench.generation("chain", chain(recipe, inputs, shipped.rows(texts)))
    # Of the whole process: both sides have run in it
    peak = peak_memory_mb(bench.about["device"])
    report("generate", "peak_memory_mb", None, None, None, process=peak, **bench.about)
    if "scores" in options.part and bench.about["dtype"] != "float32":
        # After the memory was read: it is one model more
        bench.errors("scores", judged(SCORES)[:: SCORES // EXACT])


if __name__ == "__main__":
    main()
