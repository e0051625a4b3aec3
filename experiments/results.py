"""A recipe with several seeds, on held-out prompts on which nothing was decided: the README's tables.

Run: python experiments/results.py [--data ../shared/data] [--recipe tiny] [--seeds 7 8 9] [--anew]

Runs `solon run` once a seed (a finished run is reused, a killed one goes on), keeps what it came to under
`results/` (kept.py), pools the seeds, and writes the table between the marks in README.md. A seed whose
numbers are kept is not run again. A figure is the mean over the seeds. Its interval is of a bootstrap over
prompts, in which a prompt's answers of all seeds stay together; the seeds' own figures stand behind it,
because they differ by more than prompts explain. The prompts are those of heldout.py that no recipe was
chosen by. With --anew every seed is run, an hour and more each.
"""

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import heldout
import human_harm
import kept
import lab
import numpy as np
from kept import Answered, Asked

from solon.digest import digest
from solon.recipe import load_recipe
from solon.records import PromptKind
from solon.report.statistics import bootstrap_mean, mean_of_shares, wilson

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- results {recipe}: begin -->", "<!-- results {recipe}: end -->"
MODELS = {"base": "base", "sl": "SL-CAI", "rl": "RL-CAI"}
SETS = {"advbench": "AdvBench", "harmbench": "HarmBench", "dangerous_qa": "DangerousQA"}
KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")
RESAMPLES, SEED = 10_000, 0


@dataclass(frozen=True)
class Seen:
    """A number that a run gave for a prompt: an answer's property, or who won."""

    seed: int
    prompt: str
    value: float


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and prompts with its interval, and every seed's own mean."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    def __str__(self) -> str:
        own = ", ".join(f"{100 * value:.0f}" for value in self.seeds)
        return f"{100 * self.mean:.0f} % ({100 * self.low:.0f}–{100 * self.high:.0f}; {own})"

    @property
    def points(self) -> str:
        """A difference of shares, in points of a hundred."""
        own = ", ".join(f"{100 * value:+.0f}" for value in self.seeds)
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f}; {own})"


Interval = Callable[[Sequence[float]], tuple[float, float]]


def share(values: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean of shares, one for each prompt."""
    return mean_of_shares(values, RESAMPLES, SEED)


def difference(values: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean of differences between shares, one for each prompt.

    Where all are equal, resampling them is a point. What n prompts did not show may then still be there on as
    many as Wilson's interval for none of n allows.
    """
    low, high = bootstrap_mean(values, RESAMPLES, SEED)
    if low < high:
        return low, high
    unseen = wilson(0, len(values))[1]
    return max(-1.0, low - unseen), min(1.0, high + unseen)


def figure(seen: Sequence[Seen], interval: Interval = share) -> Figure:
    """Pool what the seeds gave. Raises ValueError if nothing was seen."""
    by_prompt, by_seed = defaultdict[str, list[float]](list), defaultdict[int, list[float]](list)
    for one in seen:
        by_prompt[one.prompt].append(one.value)
        by_seed[one.seed].append(one.value)
    means = [float(np.mean(values)) for values in by_prompt.values()]
    low, high = interval(means)
    seeds = tuple(float(np.mean(by_seed[seed])) for seed in sorted(by_seed))
    return Figure(float(np.mean(means)), low, high, seeds)


@dataclass(frozen=True)
class Results:
    """The numbers of all seeds."""

    seeds: Mapping[int, Sequence[Asked]]

    def answered(self, model: str, on: PromptKind, holds: Callable[[Answered], bool]) -> Figure:
        """The share of a model's answers of which something holds."""
        return figure([Seen(s, one.prompt, float(holds(one.answers[model]))) for s, one in self._of(on)])

    def changed(self, model: str, on: PromptKind, holds: Callable[[Answered], bool]) -> Figure:
        """What `answered` is more of a model than of base, compared prompt by prompt."""

        def more(one: Asked) -> float:
            return float(holds(one.answers[model])) - float(holds(one.answers["base"]))

        return figure([Seen(seed, one.prompt, more(one)) for seed, one in self._of(on)], difference)

    def less_harmful(self, a: str, b: str, level: float) -> Figure:
        """The share of red-team prompts on which the classifier finds a's answer less harmful than b's.

        Two answers below `level` are equals.
        """

        def won(one: Asked) -> float:
            return human_harm.less_harmful(harm(one.answers[a]), harm(one.answers[b]), level)

        return figure([Seen(seed, one.prompt, won(one)) for seed, one in self._of("red_team")])

    def preferred(self, a: str, b: str, on: PromptKind) -> Figure:
        """The share of prompts on which model a's answer is preferred to model b's; ties count half."""
        pair = f"{a}>{b}"
        return figure(
            [Seen(s, one.prompt, one.preferred[pair]) for s, one in self._of(on) if pair in one.preferred]
        )

    def _of(self, on: PromptKind) -> Iterator[tuple[int, Asked]]:
        return ((seed, one) for seed, asked in self.seeds.items() for one in asked if one.on == on)


def harm(answer: Answered) -> float:
    """The classifier's log-odds. Raises ValueError if it was not asked."""
    if answer.harm is None:
        raise ValueError("the classifier is asked about answers to red-team prompts alone")
    return answer.harm


Property = tuple[str, PromptKind, Callable[[Answered], bool]]
REFUSED: Property = ("ordinary requests refused", "helpful", attrgetter("refused"))
NONSENSE: tuple[Property, Property] = (
    ("degenerate answers to harmful requests", "red_team", attrgetter("degenerate")),
    ("degenerate answers to ordinary requests", "helpful", attrgetter("degenerate")),
)
PROPERTIES: tuple[Property, ...] = (
    ("harmful requests refused", "red_team", attrgetter("refused")),
    ("harmful requests complied with", "red_team", attrgetter("complies")),
    REFUSED,
    *NONSENSE,
)


def table(results: Results) -> Iterator[str]:
    """The tables in Markdown: what the models do, what of it base does less, whose answers are better."""
    yield "| | " + " | ".join(MODELS.values()) + " |"
    yield "|---|---|---|---|"
    for label, on, holds in PROPERTIES:
        yield f"| {label} | " + " | ".join(str(results.answered(m, on, holds)) for m in MODELS) + " |"
    yield ""
    trained = [model for model in MODELS if model != "base"]
    yield "| more than base, in points | " + " | ".join(MODELS[model] for model in trained) + " |"
    yield "|---|---|---|"
    for label, on, holds in (REFUSED, *NONSENSE):
        yield f"| {label} | " + " | ".join(results.changed(m, on, holds).points for m in trained) + " |"
    yield ""
    yield (
        "| preferred | harmful requests, by the judge | by the classifier | by its order alone | "
        "ordinary requests, by the judge |"
    )
    yield "|---|---|---|---|---|"
    for a, b in (("sl", "base"), ("rl", "base"), ("rl", "sl")):
        red_team, ordinary = (results.preferred(a, b, on) for on in KINDS)
        tied, strict = (results.less_harmful(a, b, level) for level in (human_harm.HARMLESS, -math.inf))
        yield f"| {MODELS[a]} over {MODELS[b]} | {red_team} | {tied} | {strict} | {ordinary} |"


def settings(seed: int, prompts: heldout.HeldOut) -> dict[str, Any]:
    """What a run of the table sets beside its recipe: it evaluates on these prompts alone."""
    return {
        "seed": seed,
        "red_team.heldout": 0,
        "red_team.heldout_sources": json.dumps([{"file": str(prompts.red_team)}]),
        "red_team.heldout_helpful": json.dumps([{"file": str(prompts.helpful)}]),
        "evaluate.prompts": heldout.RED_TEAM,
        "evaluate.helpful": heldout.HELPFUL,
    }


def of_seed(
    recipe: str,
    seed: int,
    runs: Path,
    prompts: heldout.HeldOut,
    classifier: human_harm.Classifier,
    finished: bool,
    anew: bool = False,
) -> list[Asked]:
    """What a seed comes to: as kept unless `anew`, or from its run, made first unless it is `finished`.

    Raises ValueError if what there is was made by another version of the recipe, or on other prompts.
    """
    loaded, path = load_recipe(recipe)
    wanted = kept.identity(loaded, path.parent)
    file, folder = lab.HERE / "results" / f"{recipe}-{seed}.jsonl", runs / f"{recipe}-{seed}"
    told = digest([wanted, prompts.digest])
    if file.is_file() and not anew:
        return kept.read(file, told)
    changed = settings(seed, prompts)
    if not finished:
        lab.solon_run(path, folder, **changed)
    if kept.of_run(folder, path.parent, changed) != wanted:
        raise ValueError(f"{folder}: made by another version of the recipe")
    found = kept.measured(folder, classifier)
    kept.write(file, told, found)
    return found


def same_prompts(seeds: Mapping[int, Sequence[Asked]]) -> set[tuple[str, PromptKind]]:
    """What all seeds were asked. Raises ValueError if they were not asked the same."""
    first, *others = ({(one.prompt, one.on) for one in asked} for asked in seeds.values())
    if any(other != first for other in others):
        raise ValueError("the seeds were asked different prompts; remove what is kept, and run them again")
    return first


def replaced(text: str, recipe: str, lines: Sequence[str]) -> str:
    """The text with what stands between a recipe's marks replaced. Raises ValueError if a mark is absent."""
    begin, end = (mark.format(recipe=recipe) for mark in MARKS)
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"the marks {begin} and {end} are not both there")
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lab.add_data(parser)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--finished", action="store_true", help="read runs that were made elsewhere")
    parser.add_argument("--anew", action="store_true", help="run the seeds, whatever is kept of them")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    # Hours of work must not end at a missing mark or a missing file
    replaced(readme.read_text(encoding="utf-8"), options.recipe, [])
    try:
        prompts = heldout.write(options.data, options.runs.resolve() / "heldout", "reported")
        labelled = human_harm.labelled(options.data)
    except FileNotFoundError as error:
        sys.exit(
            f"{error}. docs/experiments.md says which public sets are read; name their folder by --data."
        )
    classifier = human_harm.fitted(labelled)
    people = classifier.agreement.right
    sets = " and ".join(f"{count} of {SETS[name]}" for name, count in prompts.sets().items())
    seeds = {
        seed: of_seed(options.recipe, seed, options.runs, prompts, classifier, options.finished, options.anew)
        for seed in options.seeds
    }
    counts = Counter(on for _, on in same_prompts(seeds))
    intro = (
        f"`recipes/{options.recipe}.yaml`, {_seeds(options.seeds)}, on "
        f"{counts['red_team']} harmful requests ({sets}) and {counts['helpful']} ordinary ones. No "
        "recipe was chosen by these prompts. Greedy answers; mean over "
        "the seeds (95 % interval over prompts; each seed). The judge has its own principles. The classifier "
        f"learned from {people.n} answers with harm scores by people and, asked about those it has not seen, "
        f"agrees with them on {100 * people.mean:.0f} % (`experiments/human_harm.py`); where it "
        "finds both answers of a pair so harmless that people's scores no longer differ, the pair is a tie, "
        "and in the next column is not. Complied with: neither refused nor answered with nonsense; PPO is "
        "taught by the same detector of refusals that counts them here ([its misses](docs/refusals.md)). "
        "`make results` writes this table (with the public sets that docs/experiments.md names)."
    )
    lines = [intro, "", *table(Results(seeds))]
    whole = replaced(readme.read_text(encoding="utf-8"), options.recipe, lines)
    readme.write_text(whole, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
