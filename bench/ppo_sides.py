"""What both sides of `bench/ppo.py` are told, and how they tell what a step took. Standard library alone."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO


@dataclass(frozen=True)
class Settings:
    """One side's run, as CONFIG.json; a field that is missing or unknown is an error."""

    model: str  # folder of a causal model and its tokenizer
    reward: str  # folder of the reward model, in the side's own form; the critic may start from it
    shift: float  # added to its score
    prompts: list[str]
    dtype: Literal["bfloat16", "float32"]
    device: Literal["cpu", "cuda"]
    episodes: int  # a step, all in one minibatch
    micro: int  # episodes in one forward pass of training (TRL); Solon goes by tokens
    epochs: int
    new_tokens: int
    temperature: float
    learning_rate: float
    beta: float
    missing_end_penalty: float | None
    critic: Literal["head", "adapter"]  # Solon's; TRL's critic is a model of its own
    steps: int
    seed: int
    out: str  # a line of JSON is appended for each step

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read(path: str) -> Settings:
    return Settings(**json.loads(Path(path).read_text(encoding="utf-8")))


class Steps:
    """Appends a line for each step to `file`, as soon as the step has ended."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._begun = self._ended = time.perf_counter()
        self._number = 0

    def ended(self, score: float, kl: float, entropy: float, peak_memory_mb: float) -> None:
        """Score: the mean, penalty included; KL in nats an answer; entropy in nats a token."""
        now = time.perf_counter()
        self._number += 1
        line: dict[str, Any] = {
            "step": self._number,
            "seconds": now - self._ended,
            "elapsed": now - self._begun,
            "score": score,
            "kl": kl,
            "entropy": entropy,
            "peak_memory_mb": peak_memory_mb,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._ended = now
