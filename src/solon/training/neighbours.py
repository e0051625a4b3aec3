"""PPO's neighbours, by TRL: RLOO and GRPO on the same prompts and reward, and DPO on the labels alone.

RLOO (Ahmadian et al. 2024, arXiv 2402.14740) and GRPO (Shao et al. 2024, arXiv 2402.03300) have no critic: an
answer's score is compared with those of the other answers to its prompt. DPO (Rafailov et al. 2023, arXiv
2305.18290) needs no reward either. What only PPO has is not read: critic, gamma, lam, kl_target, epoch_kl,
whiten_rewards, centre_scores, value_* and over_refusal_target.

Checkpoints are TRL's and hold torch's random state: on one machine a resumed run equals an uninterrupted one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset
from transformers import GenerationConfig, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from solon.engines.local import end_tokens
from solon.errors import RunError, UsageError
from solon.records import Label
from solon.training.adapters import lora_config
from solon.training.encoding import Encoder, template_settings
from solon.training.optimiser import PPO_EPSILON
from solon.training.rollout import Episode, Reward, shaped
from solon.training.trl_trainers import common_settings, last_checkpoint, on_one_device
from solon.training_settings import Reinforce

OnStep = Callable[[int, dict[str, float]], None]
"""Hears of every step in order, counted from 0; a resumed call first repeats those that are done already."""

_DPO_SAVE_EVERY = 10  # Updates, as in fine-tuning. The others save after every step, as PPO does.
# What TRL reports, under PPO's names.
_ONLINE_FIGURES = {
    "reward": "score",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "finished_share": "finished_share",
    "degenerate_share": "degenerate_share",
    "loss": "policy_loss",
    "grad_norm": "grad_norm",
    "clip_ratio/region_mean": "clip_share",
}
_DPO_FIGURES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "grad_norm": "grad_norm",
}


@dataclass(frozen=True)
class Setup:
    """What is trained and where. `folder` is for checkpoints.

    `model` is a transformers model, which gets adapters. With method full it must be in float32, and opened
    from a folder: TRL loads the reference from there.
    """

    model: Any
    tokenizer: Any
    settings: Reinforce
    seed: int
    device: str
    folder: Path
    on_step: OnStep

    @property
    def processes(self) -> int:
        return int(PartialState(cpu=self.device == "cpu").num_processes)


@dataclass(frozen=True)
class OnlinePrompt:
    """A question to the policy, and its kind."""

    text: str
    source: str


@dataclass(frozen=True)
class PreferencePair:
    """Token ids of a prompt and of two answers to it; an answer that ended has its end token."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def train_online(
    algorithm: Literal["rloo", "grpo"], setup: Setup, prompts: Sequence[OnlinePrompt], reward: Reward
) -> Any:
    """Train by RLOO or GRPO and return the model, in eval mode.

    A step has `episodes` answers, learnt from as often as in PPO; but `group` of them share a prompt, so the
    first `steps * episodes / group` prompts are asked, in their order.

    Where figures differ from PPO's of the same name: entropy, and GRPO's kl, are of the policy while it
    learns. GRPO's kl is estimated by k3, and its policy_loss contains it. RLOO's clip_share counts answers,
    as its ratio is that of a whole answer.

    Raises:
        UsageError: a step's answers do not make whole minibatches.
        RunError: a score, loss or gradient is no number; the last checkpoint is of the step before.
        ValueError: too few prompts.
    """
    settings = setup.settings
    if settings.episodes % settings.minibatch or settings.minibatch % setup.processes:
        raise UsageError(
            f"{algorithm}: reinforce.episodes ({settings.episodes}) must be a multiple of "
            f"reinforce.minibatch ({settings.minibatch}), and that of the number of processes "
            f"({setup.processes}). Change one of them."
        )
    needed = settings.steps * settings.episodes // settings.group
    if len(prompts) < needed:
        raise ValueError(f"{len(prompts)} prompts for {needed} groups of answers")
    asked = _questions(prompts[:needed], Encoder(setup.tokenizer))
    updates = settings.epochs * settings.episodes // settings.minibatch
    # In a fixed order: a set of strings has another one in every process
    own = [f"{figure}_{source}" for source in sorted(set(asked["source"])) for figure in ("score", "refused")]
    figures = {**_ONLINE_FIGURES, **{name: name for name in own}}
    trainer, config = _online(algorithm, setup, max(map(len, asked["ids"])), updates)
    with _plain_sampling(setup):
        return _train(
            trainer,
            setup,
            _Watch(algorithm, figures, updates, setup.on_step),
            args=config,
            train_dataset=asked,
            reward_funcs=_scorer(reward, setup),
        )


def preference_pairs(labels: Sequence[Label], encoder: Encoder, max_tokens: int) -> list[PreferencePair]:
    """The labels that prefer an answer, rows cut to `max_tokens`; not ties, unscored and dropped ones.

    Nor those across prompts: DPO learns to write what is chosen, and nobody should write a refusal of another
    request. Nor those whose prompt leaves no room for both answers.
    """
    pairs = []
    for label in labels:
        if label.p_a is None or label.p_a == 0.5 or label.dropped is not None or label.crossed:
            continue
        a = encoder.encode(label.prompt, label.a, label.a_finish, max_tokens)
        b = encoder.encode(label.prompt, label.b, label.b_finish, max_tokens)
        if not (a.answer and b.answer):
            continue
        chosen, rejected = (a, b) if label.p_a > 0.5 else (b, a)
        pairs.append(PreferencePair(a.prompt, chosen.answer, rejected.answer))
    return pairs


def train_dpo(setup: Setup, pairs: Sequence[PreferencePair]) -> Any:
    """Train by DPO and return the model, in eval mode.

    `epochs` passes over the shuffled pairs, `minibatch` of them an update, which is a step. The loss is that
    of the whole answers at temperature 1, and beta is `dpo_beta`.

    Raises:
        RunError: there is no pair, or a loss or gradient is no number.
    """
    if not pairs:
        raise RunError("DPO has no pair: no label prefers an answer. Raise label.pairs or change the judge.")
    columns = {
        "prompt_ids": [list(p.prompt) for p in pairs],
        "chosen_ids": [list(p.chosen) for p in pairs],
        "rejected_ids": [list(p.rejected) for p in pairs],
    }
    config = _config(
        DPOConfig,
        setup,
        max(2 * len(p.prompt) + 2 * max(len(p.chosen), len(p.rejected)) for p in pairs),
        len(pairs) % setup.settings.minibatch,
        num_train_epochs=setup.settings.epochs,
        save_steps=_DPO_SAVE_EVERY,
        beta=setup.settings.dpo_beta,
        max_length=None,
    )
    watch = _Watch("dpo", _DPO_FIGURES, 1, setup.on_step)
    return _train(_EncodedDPO, setup, watch, args=config, train_dataset=Dataset.from_dict(columns))


class _EncodedDPO(DPOTrainer):  # type: ignore[misc]
    """On rows that are encoded already: TRL would put an end token behind answers that were cut off."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def _online(algorithm: str, setup: Setup, prompt_tokens: int, updates: int) -> tuple[Any, Any]:
    """TRL's trainer, and its settings such that they mean what PPO's do."""
    settings = setup.settings
    common = {
        "max_steps": settings.steps * updates,
        "save_steps": updates,
        "adam_epsilon": PPO_EPSILON,
        "generation_batch_size": settings.episodes,
        "num_generations": settings.group,
        "num_iterations": settings.epochs,
        "max_completion_length": settings.sampling.max_tokens,
        "temperature": settings.sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "epsilon": settings.clip,
        "beta": settings.beta,
        "chat_template_kwargs": template_settings(setup.tokenizer),
        # The prompts' order is the caller's, and PPO's.
        "shuffle_dataset": False,
        # Answers without an end are learnt from: their score is what teaches the policy to end.
        "mask_truncated_completions": False,
    }
    row_tokens = prompt_tokens + settings.sampling.max_tokens
    if algorithm == "rloo":
        # The leave-one-out advantage as it is. PPO whitens its own; Adam does not see the scale.
        own: dict[str, Any] = {"normalize_advantages": False}
        return RLOOTrainer, _config(RLOOConfig, setup, row_tokens, 0, **common, **own)
    own = {
        # Every token weighs the same, as in PPO; the paper's mean over answers favours short ones.
        "loss_type": "dapo",
        # What makes it GRPO. It scales scores and not the KL: beta is in units of a group's deviation.
        "scale_rewards": "group",
        "importance_sampling_level": "token",
        # The KL's gradient is then that of the KL which PPO penalises; k3 alone has another one.
        "use_bias_correction_kl": True,
    }
    return GRPOTrainer, _config(GRPOConfig, setup, row_tokens, 0, **common, **own)


def _config(kind: Any, setup: Setup, row_tokens: int, rest: int, **own: Any) -> Any:
    """What all three share. Micro-batches keep to `batch_tokens`, counting `row_tokens` for each row.

    They divide the minibatch, and the `rest` of rows that the last one has: DPO's loss is the mean over its
    micro-batches, in which one of another size would weigh otherwise.
    """
    settings = setup.settings
    share = max(1, settings.minibatch // setup.processes)
    fitting = max(1, settings.batch_tokens // row_tokens)
    micro = max(n for n in range(1, share + 1) if math.gcd(share, rest) % n == 0 and n <= fitting)
    config = kind(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        # TRL's default is autocast to bfloat16. Here the model computes in its own type, sampling and
        # learning alike, and PEFT keeps the adapters in float32, where small steps are not lost.
        bf16=False,
        # By default "no cache" would be written into the config that is saved with the model.
        use_cache=getattr(setup.model.config, "use_cache", True),
        # Sampled, old and new log-probabilities must be of the same function.
        disable_dropout=True,
        # Mixtures of experts: PPO's loss has no such part.
        router_aux_loss_coef=0.0,
        **common_settings(
            setup.folder, settings.learning_rate, settings.max_grad_norm, setup.seed, setup.device == "cpu"
        ),
        **own,
    )
    return on_one_device(config)


def _questions(prompts: Sequence[OnlinePrompt], encoder: Encoder) -> Dataset:
    """What TRL asks, by the same chat template, and beside it what the reward needs."""
    columns = {
        "prompt": [[{"role": "user", "content": p.text}] for p in prompts],
        "ids": [list(encoder.prompt(p.text)) for p in prompts],
        "source": [p.source for p in prompts],
    }
    return Dataset.from_dict(columns)


def _scorer(reward: Reward, setup: Setup) -> Callable[..., list[float]]:
    """The reward as TRL calls it: of the same episodes and shaped the same as in PPO.

    TRL cuts an answer behind its first end token and keeps that, so its last id tells whether it ended.
    """
    encoder, ends = Encoder(setup.tokenizer), end_tokens(setup.model, setup.tokenizer)

    def score(completion_ids: Any, ids: Any, source: Any, log_metric: Any, **_: Any) -> list[float]:
        episodes = [
            Episode.of(tuple(p), tuple(a), a[-1] in ends, s, encoder.decode(tuple(a)))
            for p, a, s in zip(ids, completion_ids, source, strict=True)
        ]
        scores: list[float] = shaped(reward(episodes), episodes, setup.settings).tolist()
        for episode, found in zip(episodes, scores, strict=True):
            log_metric(f"score_{episode.source}", found)
            log_metric(f"refused_{episode.source}", float(episode.refused))
            log_metric("finished_share", float(episode.finished))
            log_metric("degenerate_share", float(episode.degenerate))
        return scores

    return score


@contextmanager
def _plain_sampling(setup: Setup) -> Iterator[None]:
    """Without the model's own habits: TRL would fill in its min_p, its banned tokens and the like."""
    model, tokenizer = setup.model, setup.tokenizer
    before = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(end_tokens(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _train(kind: Any, setup: Setup, watch: "_Watch", **own: Any) -> Any:
    settings = setup.settings
    trainer = kind(
        model=setup.model,
        processing_class=setup.tokenizer,
        peft_config=lora_config(settings.lora, setup.model) if settings.method == "lora" else None,
        callbacks=[watch],
        **own,
    )
    trainer.remove_callback(PrinterCallback)  # It prints raw dictionaries among our lines
    trainer.train(resume_from_checkpoint=last_checkpoint(setup.folder))
    return trainer.model.eval()


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells a step's figures, means over its updates, and stops at a loss or gradient that is no number."""

    def __init__(self, algorithm: str, figures: Mapping[str, str], updates: int, on_step: OnStep) -> None:
        self._algorithm = algorithm
        self._figures = figures
        self._updates = updates
        self._on_step = on_step
        self._logs: list[Mapping[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for log in state.log_history:
            self._take(log)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._take({**logs, "step": state.global_step})

    def _take(self, log: Mapping[str, Any]) -> None:
        if "loss" not in log:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(log[name]):
                raise RunError(
                    f"{self._algorithm}: {name} is {log[name]} at update {log['step']}. Lower "
                    "reinforce.learning_rate, or set dtype=float32; the stage then starts again."
                )
        self._logs.append(log)
        if log["step"] % self._updates == 0:
            self._on_step(log["step"] // self._updates - 1, self._means())
            self._logs.clear()

    def _means(self) -> dict[str, float]:
        found = {}
        for theirs, ours in self._figures.items():
            values = [log[theirs] for log in self._logs if log.get(theirs) is not None]
            if values:
                found[ours] = sum(values) / len(values)
        if "kl" in found:
            found["kl"] *= found["length"]  # TRL's is a token's; PPO's is an episode's, in nats.
        return found
