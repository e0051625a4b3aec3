"""Episodes and rollouts of PPO: sampled answers, and all that is needed to learn from them.

Names carry shapes: B episodes, T answer positions (right-padded, explicit lengths), N answer tokens end to
end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solon.errors import RunError
from solon.refusal import is_refusal
from solon.text import is_degenerate
from solon.training.batching import budget_batches, mask_of, minibatches
from solon.training.encoding import Encoded
from solon.training.policy import Policy
from solon.training.ranks import Ranks
from solon.training_settings import Reinforce


@dataclass(frozen=True)
class Episode(Encoded):
    """A prompt and the answer sampled for it, as token ids.

    `finished`: the answer ends with the end token; else it was cut off. `source` is the prompt's kind.
    """

    finished: bool
    source: str
    degenerate: bool = False
    refused: bool = False

    @classmethod
    def of(
        cls, prompt: tuple[int, ...], answer: tuple[int, ...], finished: bool, source: str, text: str
    ) -> "Episode":
        """With what the answer's text tells."""
        return cls(prompt, answer, finished, source, is_degenerate(text) is not None, is_refusal(text))


Reward = Callable[[Sequence[Episode]], Tensor]
"""What PPO maximises: a score [B], one for each episode. A reward model, a function, or one in another."""

Minibatch = list[list[int]]
"""One optimisation step: micro-batches, each the indices of episodes that are read together."""

Plan = list[list[Minibatch]]
"""The minibatches of every epoch."""


@dataclass(frozen=True)
class Rollout:
    """A batch of episodes with old log-probabilities and values. Nothing here has a gradient."""

    episodes: tuple[Episode, ...]
    score_B: Tensor
    logp_BT: Tensor
    reference_BT: Tensor
    value_BT: Tensor
    entropy_BT: Tensor
    mask_BT: Tensor

    @property
    def lengths_B(self) -> Tensor:
        return answer_lengths(self.episodes)

    @property
    def kl_B(self) -> Tensor:
        """Sampled KL to the reference an episode, in nats: the sum of log-ratios over its tokens."""
        return ((self.logp_BT - self.reference_BT) * self.mask_BT).sum(1)


def answer_lengths(episodes: Sequence[Encoded]) -> Tensor:
    return torch.tensor([len(e.answer) for e in episodes], dtype=torch.int64)


def pad_tokens(flat_N: Tensor, lengths_B: Tensor) -> Tensor:
    """Lay values of tokens end to end [N] out as rows [B, T], zeros after each length."""
    rows = torch.split(flat_N, lengths_B.tolist())
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def own_episodes(settings: Reinforce, ranks: Ranks) -> list[int]:
    """Which of a step's episodes are this process's: all of a prompt, for they are scored together."""
    each = settings.answers_each
    return [prompt * each + i for prompt in ranks.mine(settings.episodes // each) for i in range(each)]


def plan_epochs(
    episodes: Sequence[Encoded], settings: Reinforce, generator: torch.Generator, ranks: Ranks
) -> Plan:
    """This process's part of each epoch's minibatches, cut into micro-batches of like length.

    `episodes` are this process's own; the minibatches are drawn over all processes' episodes, the same
    everywhere. A part may be empty: the process then joins the others' step with no gradient of its own.
    """
    lengths = [len(e.ids) for e in episodes]
    place = {episode: k for k, episode in enumerate(own_episodes(settings, ranks))}

    def mine(batch: Sequence[int]) -> Minibatch:
        local = sorted(place[i] for i in batch if i in place)
        micro = budget_batches([lengths[i] for i in local], settings.batch_tokens)
        return [[local[k] for k in part] for part in micro]

    return [
        [mine(batch) for batch in minibatches(settings.episodes, settings.minibatch, generator)]
        for _ in range(settings.epochs)
    ]


def shaped(scores_B: Tensor, episodes: Sequence[Episode], settings: Reinforce) -> Tensor:
    """Scores as PPO uses them: clipped to +-`score_clip`, and a fixed one for answers that were cut off.

    Refusals of ordinary prompts then lose `over_refusal`, a rule beside the reward model (Mu et al. 2024,
    Rule Based Rewards): what to refuse it knows from the labels, what not to, much less.

    Raises:
        RunError: not one finite number for each episode.
    """
    if not episodes:
        raise RunError("there is no episode left to learn from. Raise reinforce.episodes or loosen a filter.")
    if scores_B.shape != (len(episodes),) or not bool(torch.isfinite(scores_B).all()):
        raise RunError(
            f"the reward gave {_faulty(scores_B)} for {len(episodes)} episodes; it must give each of them "
            "one finite number. Mend the reward, or train its model anew; the stage then starts again."
        )
    scores_B = scores_B.float().cpu()
    if settings.score_clip is not None:
        scores_B = scores_B.clamp(-settings.score_clip, settings.score_clip)
    if settings.missing_end_score is not None:
        finished_B = torch.tensor([e.finished for e in episodes])
        scores_B = torch.where(finished_B, scores_B, torch.full_like(scores_B, settings.missing_end_score))
    evasive_B = torch.tensor([e.refused and e.source == "helpful" for e in episodes])
    return scores_B - settings.over_refusal * evasive_B


def _faulty(scores_B: Tensor) -> str:
    if scores_B.dim() != 1:
        return f"a tensor of shape {[*scores_B.shape]}"
    bad = int((~torch.isfinite(scores_B)).sum())
    return f"{bad} values that are no numbers" if bad else f"{len(scores_B)} scores"


@torch.no_grad()
def evaluate(
    policy: Policy, episodes: Sequence[Episode], scores_B: Tensor, first: Sequence[Minibatch]
) -> Rollout:
    """Read the episodes under the old policy, its critic and the reference.

    Args:
        scores_B: as from `shaped`.
        first: the first epoch's minibatches. Reading in the same micro-batches makes the first ratio exactly
            1 also in bfloat16, where a row's result depends a little on its neighbours.
    """
    micro = [part for batch in first for part in batch]
    chunks = [[episodes[i] for i in part] for part in micro]
    old = [policy(chunk) for chunk in chunks]
    reference = [policy.reference_logprobs(chunk) for chunk in chunks]
    planned_B = torch.tensor([i for part in micro for i in part])
    back_B = planned_B.argsort()
    lengths_B = answer_lengths(episodes)

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        return pad_tokens(torch.cat([t.cpu() for t in tensors]), lengths_B[planned_B])[back_B]

    return Rollout(
        tuple(episodes),
        scores_B,
        rows([reading.logp_N for reading in old]),
        rows(reference),
        rows([reading.value_N for reading in old]),
        rows([reading.entropy_N for reading in old]),
        mask_of(lengths_B, int(lengths_B.max())),
    )
