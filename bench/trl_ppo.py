"""TRL's PPO on given prompts, timed: the peer that Solon's PPO is compared with.

Run, in an environment of its own that has trl 1.12.0 (the last release with PPO) and no solon:
    python bench/trl_ppo.py CONFIG.json
CONFIG.json has every field of `Settings`. For each step a line of JSON is appended to its `out`: the step's
seconds, the seconds since training began, and the means of score (less the penalty), KL (nats an answer) and
entropy (nats a token, but TRL counts the positions behind an answer's end too). The last line of stdout says
{"done": true}; all else goes to stderr.

TRL's defaults are kept for: full fine-tuning of policy and critic, fused AdamW (betas 0.9 and 0.999, no
weight decay), no gradient clipping, cliprange and cliprange_value 0.2, vf_coef 0.1, gamma 1, lam 0.95, KL by
k1, no reward whitening, up to 64 answers sampled and scored at once. Not TRL's defaults, besides what
CONFIG.json says: constant learning rate (linear), stop at the end token (never), no gradient checkpointing
(on), no samples shown, no reports, no checkpoints. Weights have `dtype`, and TRL 1.12.0 sets up no autocast.
With `minibatches` above 1 it still makes one optimiser step an epoch: it accumulates over the whole batch.
"""

import contextlib
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import record
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

PAD = "<|endoftext|>"


@dataclass(frozen=True)
class Settings:
    """What CONFIG.json holds; a field that is missing or unknown is an error."""

    model: str  # folder of a causal model and its tokenizer
    reward: str  # folder of a sequence classifier with one label; the critic starts from it too
    prompts: list[list[int]]  # in the chat template, with the assistant's header
    dtype: Literal["bfloat16", "float32"]  # of all weights, also the trained ones
    device: Literal["cpu", "cuda"]
    episodes: int  # a step
    minibatches: int  # an epoch
    micro: int  # episodes in one forward pass of training
    epochs: int
    new_tokens: int
    temperature: float
    learning_rate: float
    beta: float
    missing_end_penalty: float | None
    steps: int
    seed: int
    out: str


class Lines(TrainerCallback):  # type: ignore[misc]
    """Appends a line for each step to `file`, as soon as the step has ended."""

    def __init__(self, file: TextIO, device: str) -> None:
        self.file, self.device, self.logs = file, device, dict[str, float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = self.ended = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs = logs

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        now = time.perf_counter()
        line = {
            "step": state.global_step,
            "seconds": now - self.ended,
            "elapsed": now - self.begun,
            "score": self.logs["objective/scores"],
            "kl": self.logs["objective/kl"],
            "entropy": self.logs["policy/entropy_avg"],
            "peak_memory_mb": peak_memory_mb(self.device),
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.ended = now


def peak_memory_mb(device: str) -> float:
    """MiB at most so far: of the GPU's tensors, or of the process's resident memory (on Linux)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return record.peak_memory_mb()


def tokenizer_of(settings: Settings) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left with a token that neither ends an answer nor is in a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
    # TRL derives every mask and length from pad ids. Were the end token the pad, each answer would lose its
    # end in the loss and before the reward model, and each prompt the ends of its turns.
    if PAD not in tokenizer.get_vocab() or tokenizer.eos_token == PAD:
        raise SystemExit(f"{settings.model}: needs {PAD} as a token other than its end token, to pad with")
    tokenizer.pad_token = PAD
    if any(tokenizer.pad_token_id in prompt for prompt in settings.prompts):
        raise SystemExit(f"a prompt holds {PAD}, which TRL would take for padding")
    return tokenizer


def dataset_of(settings: Settings) -> Dataset:
    """The prompts, as often as it takes for no step to be the data loader's last.

    In a loader's last batch accelerate stops accumulating gradients, so TRL makes an optimiser step with each
    micro-batch of that step. With fewer prompts than episodes it would look for a batch for ever.
    """
    times = math.ceil((settings.steps + 1) * settings.episodes / len(settings.prompts))
    return Dataset.from_dict({"input_ids": settings.prompts * times})


def config_of(settings: Settings, folder: str) -> PPOConfig:
    if settings.episodes % (settings.micro * settings.minibatches):
        raise SystemExit("episodes must be a multiple of micro * minibatches")
    return PPOConfig(
        output_dir=folder,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        gradient_checkpointing=False,
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=settings.episodes // settings.micro,
        num_mini_batches=settings.minibatches,
        num_ppo_epochs=settings.epochs,
        total_episodes=settings.steps * settings.episodes,
        response_length=settings.new_tokens,
        stop_token="eos",
        missing_eos_penalty=settings.missing_end_penalty,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        kl_coef=settings.beta,
        num_sample_generations=0,
        seed=settings.seed,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def train(settings: Settings, folder: str, file: TextIO) -> None:
    set_seed(settings.seed)  # TRL seeds only torch, and draws its minibatches with numpy
    dtype = getattr(torch, settings.dtype)
    policy, reference = (AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype) for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(settings.reward, num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    PPOTrainer(
        args=config_of(settings, folder),
        processing_class=tokenizer_of(settings),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=dataset_of(settings),
        callbacks=[Lines(file, settings.device)],
    ).train()


def main(path: str) -> None:
    settings = Settings(**json.loads(Path(path).read_text()))
    with (
        contextlib.redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as folder,
        open(settings.out, "a") as file,
    ):
        train(settings, folder, file)
    print(json.dumps({"done": True}))


if __name__ == "__main__":
    main(sys.argv[1])
