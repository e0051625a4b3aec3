"""TRL 1.12.0's gradients of PPO on given episodes: the other side of `bench/ppo_gradients.py`.

Run, in TRL's environment: python bench/trl_gradients.py CONFIG.json
CONFIG.json: `policy` and `reference`, folders; `prompts` and `answers`, token ids; `scores`;
`learning_rate`, `beta`; and `out`, a safetensors file for the gradients by epoch and name. Sampling and
scoring are replaced by what is given; all the rest is TRL's own `train`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.experimental.ppo import PPOTrainer, ppo_trainer
from trl_ppo import quiet_config, tokenizer_of

EPOCHS = 2


class Recorder(torch.optim.SGD):
    """Keeps the gradients of every step."""

    def __init__(self, names: dict[str, torch.nn.Parameter], learning_rate: float) -> None:
        super().__init__(names.values(), lr=learning_rate)
        self.names, self.kept, self.epoch = names, dict[str, Tensor](), 0

    def step(self, *arguments: Any, **named: Any) -> None:
        grads = {name: p.grad for name, p in self.names.items() if p.grad is not None}
        self.kept |= {f"{self.epoch}.{name}": grad.clone() for name, grad in grads.items()}
        self.epoch += 1
        super().step(*arguments, **named)


def main(path: str) -> None:
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(given[name], dtype=torch.float32)
        for name in ("policy", "reference")
    )
    critic, reward = (
        AutoModelForSequenceClassification.from_pretrained(given["policy"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    torch.nn.init.zeros_(critic.score.weight)
    tokenizer = tokenizer_of(given["policy"])
    pad = tokenizer.pad_token_id
    number = {tuple(prompt): i for i, prompt in enumerate(given["prompts"])}
    read_values = ppo_trainer.get_reward

    def rows(queries: Tensor) -> list[int]:
        return [number[tuple(t for t in row if t != pad)] for row in queries.tolist()]

    def sampled(model: Any, queries: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        answers = torch.tensor([given["answers"][i] for i in rows(queries)])
        whole = torch.cat([queries, answers], dim=1)
        return whole, ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]

    def scored(model: Any, whole: Tensor, pad_id: int, context: int) -> tuple[Any, Tensor, Any]:
        if model is not reward:
            found: tuple[Any, Tensor, Any] = read_values(model, whole, pad_id, context)
            return found
        return None, torch.tensor([given["scores"][i] for i in rows(whole[:, :context])]), None

    ppo_trainer.batch_generation, ppo_trainer.get_reward = sampled, scored
    names = {f"policy.{n}": p for n, p in policy.named_parameters()} | {"critic.score": critic.score.weight}
    optimiser = Recorder(names, given["learning_rate"])
    with tempfile.TemporaryDirectory() as folder:
        count = len(given["prompts"])
        PPOTrainer(
            args=quiet_config(
                folder,
                bf16=False,
                use_cpu=True,
                per_device_train_batch_size=count,
                gradient_accumulation_steps=1,
                num_ppo_epochs=EPOCHS,
                total_episodes=count,
                response_length=len(given["answers"][0]),
                missing_eos_penalty=None,
                temperature=1.0,
                kl_coef=given["beta"],
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=Dataset.from_dict({"input_ids": given["prompts"]}),
            optimizers=(optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)),
        ).train()
    save_file(optimiser.kept, given["out"])


if __name__ == "__main__":
    main(sys.argv[1])
