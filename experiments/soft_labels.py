"""Soft against hard labels: the same pairs, with the judge's probabilities, or with its verdicts alone.

Run: python experiments/soft_labels.py RUN    (a run that has its labels, such as runs/tiny-7)

Bai et al. 2022, sec. 4.3: preference models on soft labels are better, and better calibrated. The reward
model of the run's recipe is trained on both kinds of the run's labels, and read on the same held-out pairs:
how often it agrees with the judge, the cross-entropy to its probabilities, and its calibration error; three
seeds of order and adapters each.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from lab import BLUE, ORANGE, drawing, keep, run_named

from solon.models import load_tokenizer, resolve
from solon.recipe import Recipe, load_recipe
from solon.records import Label, Prompt
from solon.report.statistics import ece
from solon.stages.reward import AskedPrompt, EncodedPair, asked, learn, plan_steps, split_pairs, untrained
from solon.store import read_rows
from solon.training.adapters import trainable
from solon.training.encoding import Encoder
from solon.training.optimiser import Optimiser
from solon.training.reward_model import RewardModel

SEEDS = (0, 1, 2)
FIGURES = {
    "agreement": "agrees with the judge",
    "cross_entropy": "cross-entropy, nats",
    "ece": "calibration error",
}


def main() -> None:
    folder = run_named(__doc__)
    recipe, _ = load_recipe(folder / "recipe.yaml")
    source = resolve(str(folder / "04_finetune" / "model"))
    labels = list(read_rows(folder / "06_label" / "rows.parquet", Label))
    encoder = Encoder(load_tokenizer(source))
    train, test = split_pairs(labels, encoder, recipe)
    prompts = asked(read_rows(folder / "01_red_team" / "rows.parquet", Prompt), test, encoder, recipe)
    kinds = {"soft": train, "hard": [hard(pair) for pair in train if pair.p_a != 0.5]}
    found = {
        kind: [measured(trained(recipe, folder, pairs, prompts, seed), test) for seed in SEEDS]
        for kind, pairs in kinds.items()
    }
    keep("soft_labels", {"pairs": {"train": len(train), "test": len(test)}, **found})
    with drawing("soft_labels", panels=len(FIGURES)) as panels:
        for axes, (name, label) in zip(panels, FIGURES.items(), strict=True):
            for place, (kind, colour) in enumerate((("soft", BLUE), ("hard", ORANGE))):
                values = [figures[name] for figures in found[kind]]
                axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6)
                axes.plot([place - 0.2, place + 0.2], [mean(values)] * 2, color=colour, linewidth=2)
            axes.set_xticks([0, 1], ["soft", "hard"])
            axes.set_xlim(-0.6, 1.6)
            axes.set_title(label, fontsize=9)


def hard(pair: EncodedPair) -> EncodedPair:
    return replace(pair, p_a=float(pair.p_a > 0.5))


def trained(
    recipe: Recipe, folder: Path, pairs: Sequence[EncodedPair], prompts: Sequence[AskedPrompt], seed: int
) -> RewardModel:
    """A reward model as the stage trains it."""
    settings = recipe.reward.optimiser
    seeded = recipe.model_copy(update={"seed": seed})
    model = untrained(seeded, resolve(str(folder / "04_finetune" / "model")), pairs, prompts)
    optimiser = Optimiser(trainable(model), settings.learning_rate)
    plan = plan_steps([p.prompt_id for p in pairs], settings.batch, settings.epochs, seed)
    for step, chosen in enumerate(plan):
        optimiser.anneal(step, len(plan))
        learn(model, optimiser, [pairs[i] for i in chosen], settings.max_grad_norm)
    return model.eval()


def measured(model: RewardModel, pairs: Sequence[EncodedPair]) -> dict[str, float]:
    """On pairs that trained nothing, with the judge's soft labels. The scores are raw: they are log-odds."""
    scores = model.score([p.a for p in pairs] + [p.b for p in pairs])
    logits = scores[: len(pairs)] - scores[len(pairs) :]
    labels = torch.tensor([p.p_a for p in pairs])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    agrees = ((logits > 0) == (labels > 0.5)).float().mean()
    return {
        "agreement": float(agrees),
        "cross_entropy": float(loss),
        "ece": ece(torch.sigmoid(logits).tolist(), labels.tolist()),
    }


if __name__ == "__main__":
    main()
