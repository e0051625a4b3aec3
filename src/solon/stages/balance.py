"""How many ordinary prompts reinforcement asks beside red-team ones, where the recipe leaves it to the run.

A policy that refuses a prompt with probability p earns J = p r + (1 - p) r', r the mean reward of its
refusals and r' that of its other answers, so dJ/dlogit(p) = p (1 - p) (r - r'). Small steps move the log-odds
of a refusal of all prompts together before they tell prompts apart: red-team prompts push them up, ordinary
ones down, and a mixture in which one kind pushes harder moves a threshold and little else. `balanced_share`
is the mixture in which both push equally, by the reward of the answers that were sampled before.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from solon.errors import RunError
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import PromptKind, Written
from solon.refusal import is_refusal
from solon.text import is_degenerate
from solon.training.encoding import Encoder
from solon.training.ranks import Ranks
from solon.training.rollout import Episode, Reward, shaped


@dataclass(frozen=True)
class Push:
    """Of a kind's sampled prompts: the share that is undecided, and over these the mean of r - r'.

    A prompt is undecided if some of its answers refuse and some do not; without any, `gap` is 0.
    """

    undecided: float
    gap: float


def pushes(answers: Sequence[Written], rewards: Sequence[float]) -> dict[PromptKind, Push]:
    """Each kind's push, from the answers to its prompts and their rewards."""
    prompts: dict[PromptKind, dict[str, list[tuple[bool, float]]]] = defaultdict(lambda: defaultdict(list))
    for answer, reward in zip(answers, rewards, strict=True):
        prompts[answer.prompt_kind][answer.prompt_id].append((is_refusal(answer.text), reward))
    return {kind: _push(list(groups.values())) for kind, groups in prompts.items()}


def _push(prompts: Sequence[Sequence[tuple[bool, float]]]) -> Push:
    gaps = [
        mean(r for refused, r in answers if refused) - mean(r for refused, r in answers if not refused)
        for answers in prompts
        if len({refused for refused, _ in answers}) == 2
    ]
    return Push(len(gaps) / len(prompts), mean(gaps) if gaps else 0.0)


def balanced_share(found: Mapping[PromptKind, Push], chosen: bool) -> float:
    """The share of ordinary prompts at which both kinds push equally, to two places.

    `chosen`: undecided prompts are asked by preference, as many of either kind, so their own shares count no
    more.

    Raises RunError if a kind has no undecided prompt or is pushed the wrong way.
    """
    up, down = (found.get(kind, Push(0.0, 0.0)) for kind in ("red_team", "helpful"))
    red, ordinary = _strength("red-team", up, up.gap), _strength("ordinary", down, -down.gap)
    if not chosen:
        red, ordinary = red * up.undecided, ordinary * down.undecided
    return min(max(round(red / (red + ordinary), 2), 0.01), 0.99)


def _strength(kind: str, push: Push, gap: float) -> float:
    """How hard a kind pushes in its direction. Raises RunError if that cannot be told."""
    if push.undecided and gap > 0:
        return gap
    why = (
        f"the reward model has it the wrong way round when to refuse {kind} prompts (by {-gap:.2f})"
        if push.undecided
        else f"no sampled {kind} prompt has both refusals and other answers"
    )
    raise RunError(
        f"reinforce.helpful_share: balanced cannot be told: {why}. Sample more prompts (sample.prompts, "
        "sample.helpful), or give a number."
    )


def helpful_share(recipe: Recipe, inputs: Inputs, reward: Reward, encoder: Encoder, ranks: Ranks) -> float:
    """The recipe's share of ordinary prompts, or the balanced one; the same in all processes.

    Raises RunError as `balanced_share`.
    """
    settings = recipe.reinforce
    if settings.helpful_share != "balanced":
        return settings.helpful_share
    answers = list(inputs.rows("sample", Written))
    episodes = [episode(encoder, answer, settings.sampling.max_tokens) for answer in answers]
    rewards = shaped(reward(episodes), episodes, settings).tolist()
    return ranks.max(balanced_share(pushes(answers, rewards), settings.undecided > 0))


def episode(encoder: Encoder, answer: Written, most: int) -> Episode:
    """A sampled answer as PPO would have sampled it, with `most` tokens."""
    whole = encoder.encode(
        answer.prompt, answer.text, answer.finish, len(encoder.prompt(answer.prompt)) + most
    )
    finished = bool(whole.answer) and whole.answer[-1] == encoder.end
    nonsense = is_degenerate(answer.text) is not None
    return Episode(whole.prompt, whole.answer, finished, answer.prompt_kind, nonsense)
