"""How many ordinary prompts reinforcement asks beside red-team ones, where the recipe leaves it to the run.

A policy that refuses a prompt with probability p earns J = p r + (1 - p) r', r the mean reward of its
refusals and r' that of its other answers, so dJ/dlogit(p) = p (1 - p) (r - r'). Small steps move the log-odds
of a refusal of all prompts together before they tell prompts apart: red-team prompts push them up, ordinary
ones down, and a mixture in which one kind pushes harder moves a threshold and little else. `balanced_share`
is the mixture in which both push equally, by the reward of the openings (openings.py).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from solon.errors import RunError
from solon.records import PromptKind, Written
from solon.refusal import is_refusal


@dataclass(frozen=True)
class Push:
    """Of a kind's sampled prompts: the share that is undecided, and over these the mean of r - r'.

    A prompt is undecided if some of its answers refuse and some do not; without any, `gap` is 0.
    """

    undecided: float
    gap: float


def pushes(
    answers: Sequence[Written], rewards: Sequence[float], sampled: Mapping[PromptKind, int]
) -> dict[PromptKind, Push]:
    """Each kind's push, from its undecided prompts' answers, their rewards, and how many prompts it has."""
    prompts: dict[PromptKind, dict[str, list[tuple[bool, float]]]] = defaultdict(lambda: defaultdict(list))
    for answer, reward in zip(answers, rewards, strict=True):
        prompts[answer.prompt_kind][answer.prompt_id].append((is_refusal(answer.text), reward))
    return {
        kind: Push(len(groups) / sampled[kind], mean(map(_gap, groups.values())))
        for kind, groups in prompts.items()
    }


def _gap(answers: Sequence[tuple[bool, float]]) -> float:
    refusals = [reward for refused, reward in answers if refused]
    others = [reward for refused, reward in answers if not refused]
    return mean(refusals) - mean(others)


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
        else f"no {kind} prompt that was tried has both refusals and other answers"
    )
    raise RunError(
        f"reinforce.helpful_share: balanced cannot be told: {why}. Try more prompts (reinforce.openings), or "
        "give a number."
    )
