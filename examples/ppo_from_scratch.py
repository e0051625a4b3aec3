"""PPO for a language model in one file: torch and a transformers model, every formula written out.

Run: python examples/ppo_from_scratch.py [--steps 40] [--shapes]

A tiny random model learns to answer with odd tokens. Solon does the same with one trunk under adapters, a
reward model, several processes and checkpoints (docs/ppo.md); the mathematics are these.

Names carry shapes: B episodes, P prompt tokens, T answer positions (padded on the right), V vocabulary,
D width. Token ids say nothing about padding: lengths do, because in many models padding is the end token.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import LlamaConfig, LlamaForCausalLM

END, PROMPT = 2, (1, 3, 4)
EPISODES, NEW_TOKENS, MINIBATCH, EPOCHS = 32, 8, 16, 2
BETA, GAMMA, LAM, CLIP, VALUE_CLIP, VALUE_COEFFICIENT = 0.02, 1.0, 0.95, 0.2, 0.2, 0.1
LEARNING_RATE, ADAM_EPSILON, MAX_NORM = 3e-3, 1e-5, 1.0


class ActorCritic(nn.Module):
    """A language model, and a value read from the same hidden states, which starts at zero."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, prompt_BP: Tensor, answer_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and value [B, T] of every answer token.

        A token is predicted one column before it stands, and its value is what is expected there, before it
        is chosen. So the columns are those from the prompt's last token to the answer's last but one.
        """
        ids = torch.cat([prompt_BP, answer_BT], dim=1)
        hidden_BTD = self.model.model(input_ids=ids).last_hidden_state[:, prompt_BP.shape[1] - 1 : -1]
        logits_BTV = self.model.lm_head(hidden_BTD).float()
        logp_BT = logits_BTV.log_softmax(-1).gather(-1, answer_BT.unsqueeze(-1)).squeeze(-1)
        return logp_BT, self.value_head(hidden_BTD.float()).squeeze(-1)


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompt_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Answers [B, T] from the whole distribution (no top-k, no top-p), and their lengths [B].

    The end token belongs to the answer. What stands behind it is never looked at.
    """
    ids, finished_B = prompt_BP, torch.zeros(len(prompt_BP), dtype=torch.bool)
    lengths_B = torch.zeros(len(prompt_BP), dtype=torch.int64)
    for _ in range(NEW_TOKENS):
        logits_BV = model(input_ids=ids).logits[:, -1].float()
        token_B = torch.multinomial(logits_BV.softmax(-1), 1).squeeze(-1)
        ids = torch.cat([ids, token_B.unsqueeze(-1)], dim=1)
        lengths_B += ~finished_B
        finished_B |= token_B == END
    return ids[:, prompt_BP.shape[1] :], lengths_B


def odd_share(answer_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The reward [B]: which share of an answer's tokens are odd. The best is 1."""
    return (answer_BT % 2 * mask_BT).sum(1) / mask_BT.sum(1)


def token_rewards(logp_BT: Tensor, reference_BT: Tensor, score_B: Tensor, lengths_B: Tensor) -> Tensor:
    """-beta (log p - log p_ref) for each token, the score at the last (Ziegler et al. 2019, eq. 2)."""
    last_BT = one_hot(lengths_B - 1, logp_BT.shape[1])
    return -BETA * (logp_BT - reference_BT) + score_B.unsqueeze(-1) * last_BT


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16). Behind an answer there is no value."""
    advantage_BT, running_B = torch.zeros_like(reward_BT), torch.zeros(len(reward_BT))
    next_value_B = torch.zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        delta_B = reward_BT[:, t] + GAMMA * next_value_B - value_BT[:, t]
        running_B = torch.where(mask_BT[:, t], delta_B + GAMMA * LAM * running_B, 0.0)
        next_value_B = torch.where(mask_BT[:, t], value_BT[:, t], 0.0)
        advantage_BT[:, t] = running_B
    return advantage_BT


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """To mean 0 and variance 1 over the tokens that are there."""
    valid = x_BT[mask_BT]
    return (x_BT - valid.mean()) / (valid.var(unbiased=False) + 1e-8).sqrt() * mask_BT


def policy_loss(new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), as a mean over tokens, to be minimised."""
    ratio_BT = (new_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - CLIP, 1 + CLIP)
    return torch.max(-advantage_BT * ratio_BT, -advantage_BT * clipped_BT)[mask_BT].mean()


def value_loss(new_BT: Tensor, old_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Half the squared error, the worse of clipped and unclipped value."""
    clipped_BT = old_BT + (new_BT - old_BT).clamp(-VALUE_CLIP, VALUE_CLIP)
    error_BT = torch.max((new_BT - return_BT) ** 2, (clipped_BT - return_BT) ** 2)
    return 0.5 * error_BT[mask_BT].mean()


@dataclass(frozen=True)
class Rollout:
    """A batch of answers and what the old policy, its critic and the reference say of them."""

    prompt_BP: Tensor
    answer_BT: Tensor
    lengths_B: Tensor
    mask_BT: Tensor
    score_B: Tensor
    logp_BT: Tensor
    reference_BT: Tensor
    value_BT: Tensor


@torch.no_grad()
def roll_out(policy: ActorCritic, reference: ActorCritic) -> Rollout:
    prompt_BP = torch.tensor([PROMPT] * EPISODES)
    answer_BT, lengths_B = sample(policy.model, prompt_BP)
    mask_BT = torch.arange(answer_BT.shape[1]) < lengths_B.unsqueeze(-1)
    logp_BT, value_BT = policy(prompt_BP, answer_BT)
    reference_BT, _ = reference(prompt_BP, answer_BT)
    score_B = odd_share(answer_BT, mask_BT)
    return Rollout(prompt_BP, answer_BT, lengths_B, mask_BT, score_B, logp_BT, reference_BT, value_BT)


Show = Callable[[str, Tensor], None]


def ppo_step(
    policy: ActorCritic, reference: ActorCritic, optimiser: torch.optim.Optimizer, show: Show
) -> Rollout:
    """Sample, score, read, and learn for some epochs."""
    old = roll_out(policy, reference)
    reward_BT = token_rewards(old.logp_BT, old.reference_BT, old.score_B, old.lengths_B)
    advantage_BT = gae(reward_BT, old.value_BT, old.mask_BT)
    return_BT = advantage_BT + old.value_BT
    advantage_BT = whiten(advantage_BT, old.mask_BT)
    for name, tensor in {**vars(old), "reward_BT": reward_BT, "advantage_BT": advantage_BT}.items():
        show(name, tensor)
    for epoch in range(EPOCHS):
        for place, part in enumerate(torch.randperm(EPISODES).split(MINIBATCH)):
            logp_BT, value_BT = policy(old.prompt_BP[part], old.answer_BT[part])
            mask_BT = old.mask_BT[part]
            if (
                epoch == place == 0
            ):  # The policy has not moved yet: were this not 1, every later ratio is wrong.
                assert ((logp_BT - old.logp_BT[part])[mask_BT].exp() - 1).abs().max() < 1e-4
            loss = policy_loss(logp_BT, old.logp_BT[part], advantage_BT[part], mask_BT)
            loss = loss + VALUE_COEFFICIENT * value_loss(
                value_BT, old.value_BT[part], return_BT[part], mask_BT
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM)
            optimiser.step()
    return old


def train(steps: int, seed: int = 0, show: Show = lambda name, tensor: None) -> list[float]:
    """The mean score of every step."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=END,
        eos_token_id=END,
    )
    policy = ActorCritic(LlamaForCausalLM(config)).eval()  # Dropout, where a model has it, must be off
    reference = deepcopy(policy).requires_grad_(False)
    optimiser = torch.optim.AdamW(policy.parameters(), LEARNING_RATE, eps=ADAM_EPSILON, weight_decay=0.0)
    scores = []
    for step in range(steps):
        old = ppo_step(policy, reference, optimiser, show if step == 0 else lambda name, tensor: None)
        scores.append(float(old.score_B.mean()))
        kl = float(((old.logp_BT - old.reference_BT) * old.mask_BT).sum(1).mean())
        if step % 5 == 0 or step + 1 == steps:
            print(f"step {step:3d}  score {scores[-1]:.3f}  KL {kl:.2f} nats an answer")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--shapes", action="store_true", help="the tensors of one step, and nothing else")
    options = parser.parse_args()
    if options.shapes:
        found: dict[str, Tensor] = {}
        train(1, show=found.__setitem__)
        for name, tensor in found.items():
            print(f"{name:13} {[*tensor.shape]!s:9} {str(tensor.dtype).removeprefix('torch.')}")
    else:
        train(options.steps)


if __name__ == "__main__":
    main()
