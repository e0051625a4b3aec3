"""TRL's PPO on given prompts, timed: the peer that Solon's PPO is compared with.

Run, in an environment of its own that has trl 1.12.0 (the last release with PPO) and no solon:
    python bench/trl_ppo.py CONFIG.json
CONFIG.json has the fields of `ppo_sides.Settings`. The entropy that TRL logs counts the positions behind an
answer's end too.

TRL's defaults are kept for: full fine-tuning of policy and critic, fused AdamW (betas 0.9 and 0.999, no
weight decay), no gradient clipping, cliprange and cliprange_value 0.2, vf_coef 0.1, gamma 1, lam 0.95, KL by
k1, no reward whitening, up to 64 answers sampled and scored at once. Not TRL's defaults, besides what
CONFIG.json says: stop at the end token (never), no gradient checkpointing (on), no samples shown, no
reports, no checkpoints. Weights have `dtype`, and TRL 1.12.0 sets up no autocast.
"""

import contextlib
import math
import sys
import tempfile
from typing import Any, TextIO

import torch
from datasets import Dataset
from ppo_sides import Settings, Steps, read
from record import peak_memory_mb
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


class Lines(TrainerCallback):  # type: ignore[misc]
    """Tells of every step as it ends."""

    def __init__(self, file: TextIO, device: str) -> None:
        self.file, self.device, self.logs = file, device, dict[str, float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.steps = Steps(self.file)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs = logs

    def on_step_end(self, *_: Any, **__: Any) -> None:
        logs = self.logs
        self.steps.ended(
            logs["objective/scores"],
            logs["objective/kl"],
            logs["policy/entropy_avg"],
            peak_memory_mb(self.device),
        )


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left with a token that neither ends an answer nor is in a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    # TRL derives every mask and length from pad ids. Were the end token the pad, each answer would lose its
    # end in the loss and before the reward model, and each prompt the ends of its turns.
    if PAD not in tokenizer.get_vocab() or tokenizer.eos_token == PAD:
        raise SystemExit(f"{model}: needs {PAD} as a token other than its end token, to pad with")
    tokenizer.pad_token = PAD
    return tokenizer


def dataset_of(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The prompts, as often as it takes for no step to be the data loader's last.

    In a loader's last batch accelerate stops accumulating gradients, so TRL makes an optimiser step with each
    micro-batch of that step. With fewer prompts than episodes it would look for a batch for ever.
    """
    turns = [[{"role": "user", "content": prompt}] for prompt in settings.prompts]
    ids = [tokenizer.apply_chat_template(t, add_generation_prompt=True, return_dict=False) for t in turns]
    if any(tokenizer.pad_token_id in prompt for prompt in ids):
        raise SystemExit(f"a prompt holds {PAD}, which TRL would take for padding")
    times = math.ceil((settings.steps + 1) * settings.episodes / len(ids))
    return Dataset.from_dict({"input_ids": ids * times})


def quiet_config(folder: str, **settings: Any) -> PPOConfig:
    """What all runs here have: one minibatch an epoch, stop at the end token, nothing shown or kept."""
    return PPOConfig(
        output_dir=folder,
        gradient_checkpointing=False,
        num_mini_batches=1,
        stop_token="eos",
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )


def config_of(settings: Settings, folder: str) -> PPOConfig:
    if settings.episodes % settings.micro:
        raise SystemExit("episodes must be a multiple of micro")
    return quiet_config(
        folder,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        per_device_train_batch_size=settings.micro,
        gradient_accumulation_steps=settings.episodes // settings.micro,
        num_ppo_epochs=settings.epochs,
        total_episodes=settings.steps * settings.episodes,
        response_length=settings.new_tokens,
        missing_eos_penalty=settings.missing_end_penalty,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        kl_coef=settings.beta,
        seed=settings.seed,
    )


def train(settings: Settings, folder: str, file: TextIO) -> None:
    set_seed(settings.seed)  # TRL seeds only torch, and draws its minibatches with numpy
    dtype = getattr(torch, settings.dtype)
    policy, reference = (AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype) for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(settings.reward, num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    for classifier in (reward, critic):
        classifier.score.register_forward_hook(lambda _, __, score: score + settings.shift)
    tokenizer = tokenizer_of(settings.model)
    PPOTrainer(
        args=config_of(settings, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=dataset_of(settings, tokenizer),
        callbacks=[Lines(file, settings.device)],
    ).train()


def main(path: str) -> None:
    settings = read(path)
    with (
        contextlib.redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as folder,
        open(settings.out, "a") as file,
    ):
        train(settings, folder, file)


if __name__ == "__main__":
    main(sys.argv[1])
