"""How many ordinary prompts reinforcement asks beside red-team ones, where the recipe leaves it to the run.

A policy that refuses a prompt with probability p earns J = p r + (1 - p) r', r the mean reward of its
refusals and r' that of its other answers, so dJ/dlogit(p) = p (1 - p) (r - r'). Small steps move the log-odds
of a refusal of all prompts together before they tell prompts apart: red-team prompts push them up, ordinary
ones down, and a mixture in which one kind pushes harder moves a threshold and little else. `balanced_share`
is the mixture in which both push equally, by the reward of the answers that were sampled before.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from solon.errors import RunError
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import PromptKind, Written
from solon.refusal import is_refusal
from solon.stages.prompting import Mixture, undecided
from solon.stages.sample import sampled
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
        else f"no sampled {kind} prompt has both refusals and other answers"
    )
    raise RunError(
        f"reinforce.helpful_share: balanced cannot be told: {why}. Sample more prompts (sample.prompts, "
        "sample.helpful), or give a number."
    )


def mixture(recipe: Recipe, inputs: Inputs, reward: Reward, encoder: Encoder, ranks: Ranks) -> Mixture:
    """The recipe's mixture, told by the answers of stage 5 where it needs them; the same in all processes.

    Raises RunError as `balanced_share`.
    """
    settings = recipe.reinforce
    share = settings.helpful_share
    if share != "balanced" and not settings.undecided:
        return Mixture(share)
    answers = list(sampled(recipe, inputs))
    wanted = undecided(answers)
    if share == "balanced":
        prompts = {answer.prompt_id: answer.prompt_kind for answer in answers}
        telling = [answer for answer in answers if answer.prompt_id in wanted]
        episodes = [episode(encoder, answer, settings.sampling.max_tokens) for answer in telling]
        rewards = shaped(reward(episodes), episodes, settings).tolist() if episodes else []
        found = pushes(telling, rewards, Counter(prompts.values()))
        share = ranks.max(balanced_share(found, settings.undecided > 0))
    return Mixture(share, wanted if settings.undecided else frozenset())


def episode(encoder: Encoder, answer: Written, most: int) -> Episode:
    """A sampled answer as PPO would have sampled it, with `most` tokens."""
    whole = encoder.encode(
        answer.prompt, answer.text, answer.finish, len(encoder.prompt(answer.prompt)) + most
    )
    finished = bool(whole.answer) and whole.answer[-1] == encoder.end
    nonsense = is_degenerate(answer.text) is not None
    return Episode(whole.prompt, whole.answer, finished, answer.prompt_kind, nonsense)
