"""1, 2, 4, 8 and 16 principles: what their number does to the score and the variety of revisions.

Run: python experiments/principles.py [--runs runs/experiments] [--data ../shared/data]

Bai et al. 2022, sec. 3.4: the number of constitutional principles does not move the harmlessness score, but
makes the revisions more varied. The first so many training principles of the shipped constitution are drawn;
the judge of the candidates is taught by all comparisons throughout. Variety is the share of different word
trigrams among all trigrams of the revisions; harm is told by a classifier that people's labels taught
(human_harm.py).
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import human_harm
import lab
from lab import BLUE, ORANGE, Share, share

from solon.constitution import Constitution, dump
from solon.text import words

COUNTS = (1, 2, 4, 8, 16)
ROUNDS = 2
_NEVER = 1e-12  # The weight of a principle that is as good as never drawn


def main() -> None:
    options = lab.options(__doc__)
    whole = lab.harmless()
    folders = {}
    for count in COUNTS:
        folder = options.runs / f"principles-{count}"
        file = options.runs / "constitutions" / f"first-{count}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dump(first(whole, count)), encoding="utf-8")
        folders[count] = lab.solon_run("principles", folder, "revise", constitution=file.resolve())
    classifier = human_harm.fitted(human_harm.labelled(options.data))
    scores, varieties = [], []
    for count in COUNTS:
        found = measured(classifier, folders[count])
        scores.append(found[0])
        varieties.append(found[1])
    lab.keep(
        "principles",
        {
            str(count): {"less_harmful": asdict(score), "variety": variety}
            for count, score, variety in zip(COUNTS, scores, varieties, strict=True)
        },
    )
    with lab.drawing("principles", panels=2) as (left, right):
        lab.draw_less_harmful(left, COUNTS, scores, BLUE, "")
        right.plot(COUNTS, varieties, "o-", color=ORANGE, linewidth=1.5, markersize=4)
        right.set_ylabel("different trigrams (share)")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
            axes.set_xlabel("principles")


def first(whole: Constitution, count: int) -> Constitution:
    """The constitution with only the first `count` training principles for red-team prompts ever drawn."""
    asked = [p.id for p in whole.of("training", "red_team")][:count]
    principles = tuple(
        p if p.purpose == "evaluation" or p.id in asked else p.model_copy(update={"weight": _NEVER})
        for p in whole.principles
    )
    return whole.model_copy(update={"principles": principles})


def measured(classifier: human_harm.Classifier, folder: Path) -> tuple[Share, float]:
    """How often the revised text is less harmful than the first answer, and the variety of the revisions."""
    before, *_, after = lab.texts_by_round(folder, ROUNDS)
    pairs = [(text.prompt, text.text, before[i].text) for i, text in after.items()]
    changed = [text.text for i, text in after.items() if text.id != before[i].id]
    return share(classifier.less_harmful(pairs)), variety(changed)


def variety(texts: Sequence[str]) -> float:
    """Different word trigrams over all of them (distinct-3; Li et al. 2016, sec. 5.2, with bigrams)."""
    trigrams = [tuple(w[i : i + 3]) for w in map(words, texts) for i in range(len(w) - 2)]
    return len(set(trigrams)) / max(1, len(trigrams))


if __name__ == "__main__":
    main()
