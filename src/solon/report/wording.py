"""Numbers into words: the formats of the page, and a verdict that claims no more than the numbers do."""

from collections.abc import Mapping, Sequence
from typing import Any

_THIN = "\u202f"
NONE = "–"
# What the table shows as 0.0 points, the words must not call a movement.
_UNSEEN_SHIFT = 0.0005
NAMES = {"base": "base", "sl": "SL", "rl": "RL", "ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "dpo": "DPO"}

Numbers = Mapping[str, Any]
Interval = Sequence[float] | None


def percent(share: float | None) -> str:
    """0.678 as "68 %"."""
    return NONE if share is None else f"{100 * share:.0f}{_THIN}%"


def interval(ci95: Interval) -> str:
    """[0.57, 0.78] as "57–78 %"."""
    return NONE if ci95 is None else f"{100 * ci95[0]:.0f}–{100 * ci95[1]:.0f}{_THIN}%"


def count(number: float | None) -> str:
    """1234567 as "1 234 567", with thin spaces."""
    return NONE if number is None else f"{number:,.0f}".replace(",", _THIN)


def decimal(number: float | None, places: int = 2) -> str:
    """A number with a true minus sign."""
    return NONE if number is None else f"{number:.{places}f}".replace("-", "−")


def points(share: float | None) -> str:
    """0.0123 as "1.2" percentage points."""
    return NONE if share is None else decimal(100 * share, 1)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_THIN}s"
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60:02d}{_THIN}s"
    return f"{whole // 3600}{_THIN}h {whole % 3600 // 60:02d}{_THIN}min"


def reading(comparison: Numbers) -> str:
    """What a win rate's interval says: who is better, or that it does not say."""
    if comparison["ci95"] is None:
        return "nothing was scored"
    low, high = comparison["ci95"]
    if low > 0.5:
        return f"{_name(comparison['a'])} is preferred"
    if high < 0.5:
        return f"{_name(comparison['b'])} is preferred"
    return f"no clear difference: the interval includes 50{_THIN}%"


def one_direction(effects: Numbers) -> str | None:
    """That the principles' wording moves no label, where any two of them agree throughout; else None."""
    rows = enumerate(effects["agreement"])
    shares = [share for y, row in rows for x, share in enumerate(row) if x != y]
    if not shares or any(share != 1 for share in shares):
        return None
    told = (
        "This judge reads one direction for all principles: any two of them prefer the same answer on every "
        "pair that both scored, so their wording does not move its labels"
    )
    shift = max(effect["left_out_shift"] for effect in effects["principles"])
    if shift < _UNSEEN_SHIFT:
        return f"{told}."
    return f"{told} from one answer to the other, only how sure they are."


def verdict(summary: Numbers) -> list[str]:
    """The run in a few sentences; where nothing was evaluated, a sentence that says so."""
    evaluation = summary.get("evaluation")
    if not evaluation:
        return ["The models of this run have not been compared yet: the evaluation has not run."]
    compared = {(p["a"], p["b"], p["on"]): p for p in evaluation.get("pairwise", [])}
    told = [_comparison(compared[key], opening) for key, opening in _OPENINGS.items() if key in compared]
    sentences = [*told, *_refusals(evaluation.get("models", {}))]
    reliable, judged = _judge(summary.get("judge", {}))
    # A judge at chance is no footnote: it comes before the preferences that it makes meaningless.
    return [*sentences, *judged] if reliable else [*judged, *sentences]


_OPENINGS = {
    ("rl", "base", "red_team"): "On held-out red-team prompts the judge preferred the RL model to the base",
    ("rl", "base", "helpful"): "On ordinary prompts it preferred RL to base",
    (
        "rl",
        "sl",
        "red_team",
    ): "On red-team prompts it preferred RL to SL, the model before reinforcement,",
}


def _comparison(found: Numbers, opening: str) -> str:
    if found["ci95"] is None:
        return f"{opening} in no case, because no pair could be scored."
    low, high = found["ci95"]
    figures = f"{percent(found['win_rate'])} of the time (95{_THIN}% interval {interval(found['ci95'])}, "
    told = f"{opening} {figures}n\u00a0=\u00a0{found['n']})"
    if low > 0.5:
        return f"{told}."
    if high < 0.5:
        return f"{told}: there, RL is worse."
    return f"{told}; the interval includes 50{_THIN}%, so no difference is shown."


def _refusals(models: Mapping[str, Numbers]) -> list[str]:
    if not {"base", "rl"} <= models.keys():
        return []
    rates = {
        name: f"{percent(models['rl'][name])} (base: {percent(models['base'][name])})"
        for name in ("refusal_rate", "over_refusal_rate", "degenerate_rate")
    }
    return [
        f"The RL model refused {rates['refusal_rate']} of the harmful requests and "
        f"{rates['over_refusal_rate']} of the ordinary ones; {rates['degenerate_rate']} of its answers "
        "were degenerate."
    ]


def _judge(judge: Numbers) -> tuple[bool, list[str]]:
    """Whether the evaluation's judge is better than chance, and the sentence about it."""
    ci95 = judge.get("evaluation_ci95")
    if not ci95:
        return True, []
    told = (
        "The judge of the evaluation, taught only by principles kept out of training, was right on "
        f"{percent(judge['evaluation_accuracy'])} of {judge['evaluation_n']} known comparisons "
        f"({interval(ci95)})"
    )
    if judge.get("evaluation_weak", ci95[0] <= 0.5):
        return False, [f"{told}: not shown to be better than chance, so its preferences mean little."]
    return True, [f"{told}."]


def _name(model: str) -> str:
    return NAMES.get(model, model)
