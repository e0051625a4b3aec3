"""How good is a judge? The figures of a check on answers with a known better one.

Accuracy alone deceives: a judge that always prefers the shorter answer, or the first, may look better than
chance. So the floors of both lengths stand beside it, the accuracy where lengths cannot tell, how often
the judge keeps to a position when the answers are swapped, and whether its probabilities mean what they say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from solon.feedback.measure import Result
from solon.report.statistics import ece, reliability, wilson

_MATCHED = 1.25  # Lengths within this ratio count as matched.


@dataclass(frozen=True)
class Share:
    """A share of n with its Wilson interval; a tie counts as wrong."""

    accuracy: float
    n: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Check:
    """The figures of one judge on one set of items.

    `n` counts the scored ones; `unscored` the others by reason. `shorter` and `longer` are the floors: how
    often the shorter (longer) answer is the better one, ties as one half. `flip_rate` is None for judges
    without order. `seconds` and `tokens` are what the whole check took.
    """

    kind: str
    on: str
    accuracy: float
    n: int
    ci95: tuple[float, float]
    flip_rate: float | None
    length_matched: Share | None
    shorter: float
    longer: float
    ece: float
    reliability: list[dict[str, float]]
    unscored: Mapping[str, int]
    truncated: int
    seconds: float
    tokens: int

    def beats_chance(self, tried: int = 1) -> bool:
        """Whether it is shown to be better than a coin, as the best of so many judges that were tried.

        The interval is the wider for the choice (Bonferroni): of six at chance, one clears 95 % in every
        seventh run.
        """
        z = NormalDist().inv_cdf(1 - 0.025 / tried)
        return wilson(self.accuracy * self.n, self.n, z)[0] > 0.5

    def as_dict(self) -> dict[str, Any]:
        """As JSON data: tuples as lists."""
        matched = self.length_matched
        plain = asdict(self) | {"ci95": list(self.ci95), "unscored": dict(self.unscored)}
        if matched:
            plain["length_matched"] = asdict(matched) | {"ci95": list(matched.ci95)}
        return plain


def share(p_better: Sequence[float]) -> Share:
    """How often the better answer got more than one half. At least one probability is needed."""
    hits = sum(p > 0.5 for p in p_better)
    return Share(hits / len(p_better), len(p_better), wilson(hits, len(p_better)))


def summarise(kind: str, on: str, results: Sequence[Result], seconds: float, tokens: int) -> Check | None:
    """The figures of a check; None where no item was scored."""
    scored = [(r, r.p_better) for r in results if r.p_better is not None]
    if not scored:
        return None
    found = share([p for _, p in scored])
    flips = [r.flipped for r, _ in scored if r.flipped is not None]
    matched = [p for r, p in scored if _is_matched(r)]
    # Both sides of every item: the figures then do not depend on which answer was called a.
    predicted = [q for _, p in scored for q in (p, 1.0 - p)]
    observed = [1.0, 0.0] * len(scored)
    shorter = sum(_shorter(r) for r, _ in scored) / len(scored)
    return Check(
        kind,
        on,
        found.accuracy,
        found.n,
        found.ci95,
        sum(flips) / len(flips) if flips else None,
        share(matched) if matched else None,
        shorter,
        1.0 - shorter,
        ece(predicted, observed),
        [asdict(one) for one in reliability(predicted, observed)],
        dict(Counter(r.unscored for r in results if r.unscored)),
        sum(r.truncated for r in results),
        round(seconds, 2),
        tokens,
    )


def _is_matched(result: Result) -> bool:
    low, high = sorted((result.words_better, result.words_worse))
    return high <= _MATCHED * low


def _shorter(result: Result) -> float:
    """1 if the better answer is the shorter one, 1/2 for equal lengths."""
    if result.words_better == result.words_worse:
        return 0.5
    return float(result.words_better < result.words_worse)
