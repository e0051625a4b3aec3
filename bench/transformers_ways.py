"""What transformers itself offers for the answers of `bench/generate.py`, each way beside Solon.

Run: python bench/transformers_ways.py [--repeat 3] [--dtype auto] [--device auto] [--way WAY ...]

64 red-team prompts, one sampled answer each of up to 128 tokens, with the same model and sampling settings.
- sorted: `generate` in batches of 16, the prompts sorted by length.
- one: `generate` with all prompts in one batch.
- static: as sorted, with the static key-value cache.
- continuous: `generate_batch`, its continuous batching.
A way that ends with an error is reported with that error and no rate.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from generate import BATCH, PROMPTS, Plain, beside, opened, red_team_requests
from record import device_options, report
from transformers import ContinuousBatchingConfig, GenerationConfig

from solon.engines.base import Completion, GenerateRequest, completions

PAGE = 256  # Tokens of a block; prompt and answer fit into one


class Sorted(Plain):
    """Prompts of like length in one batch."""

    rows = BATCH

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        lengths = [len(self._turns.prompt(r.conversation, r.sampling.max_tokens)) for r in requests]
        order = sorted(range(len(requests)), key=lengths.__getitem__)
        for start in range(0, len(order), self.rows):
            places = order[start : start + self.rows]
            for place, done in zip(places, self._sample([requests[i] for i in places]), strict=True):
                yield replace(done, index=place)


class One(Sorted):
    rows = PROMPTS


class Static(Sorted):
    settings: ClassVar[dict[str, Any]] = {"cache_implementation": "static"}


class Continuous(Plain):
    """transformers' own continuous batching, with a block for every request."""

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        sampling = requests[0].sampling
        prompts = [list(self._turns.prompt(r.conversation, sampling.max_tokens)) for r in requests]
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            eos_token_id=list(self._ends),
            pad_token_id=self._ends[0],
        )
        batching = ContinuousBatchingConfig(
            num_blocks=len(requests) + 1, page_size=PAGE, seed=requests[0].seed
        )
        done = self.model.generate_batch(prompts, config, batching)
        failed = [output.error for output in done.values() if output.error]
        if failed or len(done) < len(prompts):
            raise RuntimeError(f"{len(done)} of {len(prompts)} answers: {failed[:1]}")
        for place, output in enumerate(done.values()):
            yield replace(self._answer(output.prompt_ids, output.generated_tokens), index=place)


WAYS: dict[str, type[Plain]] = {"sorted": Sorted, "one": One, "static": Static, "continuous": Continuous}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, nargs="+", default=list(WAYS))
    device_options(parser)
    options = parser.parse_args()
    bench, requests = opened(options), red_team_requests()
    completions(bench.solon, requests[:BATCH])  # Warms up
    for way in options.way:
        peer = beside(WAYS[way], bench.solon)
        try:
            completions(peer, requests[:BATCH])
            replace(bench, plain=peer).generation(way, lambda e: completions(e, requests))
        except Exception as error:  # Whatever transformers raises is the finding
            told = f"{type(error).__name__}: {error}"[:300]
            report("generate", way, None, None, None, error=told, **bench.about)


if __name__ == "__main__":
    main()
