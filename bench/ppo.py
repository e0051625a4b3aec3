"""Solon's PPO beside TRL 1.12.0's, the last release that has one: the same model, prompts and reward.

Run: python bench/ppo.py [--repeat 3] [--minutes 45] [--dtype auto] [--device auto]

Both learn from 16 episodes a step, up to 48 new tokens each, in 4 epochs of one minibatch; each side runs
in a process of its own, one after the other, in turn. The first step of a run warms up; a run's figure is
the median of the others, and the bench's the median over the runs. TRL is installed into `.venv-trl`, which
is made if it is absent. TRL trains all weights of policy and critic, as it does by default; Solon trains
adapters on the upper third of one trunk, as it does by default. Each side has a learning rate of its own:
steps of adapters on few blocks move a model less than as large steps of all weights do. The reward model is
Solon's, trained on the constitution's comparisons; for TRL its adapter is merged into a sequence classifier,
and the scores are compared.

With `--minutes` each side then trains for so long, and the figure docs/figures/ppo.png shows the reward
against the wall time, with marks at equal KL.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ppo_curve
import torch
from ppo_sides import Settings
from prompts import texts
from record import RESULTS, device_options, report
from transformers import AutoModelForSequenceClassification
from trl_environment import TRL, run

from solon.constitution import Comparison, load_constitution
from solon.models import load_tokenizer, pick_device, pick_dtype, resolve
from solon.stages.reward import EncodedPair, different_answers, learn, plan_steps
from solon.training.adapters import trainable
from solon.training.encoding import Encoded, Encoder
from solon.training.optimiser import Optimiser
from solon.training.reward_model import RewardModel, new_reward_model
from solon.training_settings import Lora

HERE = Path(__file__).resolve().parent
PROMPTS = ("red_team", "helpful")
STEPS = 4  # The first warms up
PAIRS, BATCH, RATE = 160, 8, 2e-4  # Of the reward model's training

Side = Literal["solon", "trl"]
SIDES: tuple[Side, ...] = ("solon", "trl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="of the timing; 0: no timing")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="of each side's run for the figure; 0: no figure"
    )
    device_options(parser)
    options = parser.parse_args()
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder), device, dtype)
        if options.repeat:
            bench.speed(options.repeat)
        if options.minutes:
            bench.curve(options.minutes * 60)


@dataclass(frozen=True)
class Bench:
    """What both sides run on."""

    folder: Path
    settings: dict[Side, Settings]
    about: dict[str, Any]

    def speed(self, repeat: int) -> None:
        """Episodes a second and peak memory of both sides, in turn."""
        found: dict[Side, list[list[dict[str, float]]]] = {side: [] for side in SIDES}
        for _ in range(repeat):
            for side in SIDES:
                found[side].append(self.run(side))
        rates = {side: [rate(run, self.settings[side].episodes) for run in found[side]] for side in SIDES}
        memory = {side: max(run[-1]["peak_memory_mb"] for run in found[side]) for side in SIDES}
        solon, trl = (statistics.median(rates[side]) for side in SIDES)
        each = {f"{side}_runs": [round(r, 4) for r in rates[side]] for side in SIDES}
        report("ppo", "episodes_per_second", solon, trl, solon / trl, **each, **self.about)
        report(
            "ppo",
            "peak_memory_mb",
            memory["solon"],
            memory["trl"],
            memory["solon"] / memory["trl"],
            **self.about,
        )

    def curve(self, seconds: float) -> None:
        """Reward against wall time, with marks at equal KL: a figure, and the steps behind it."""
        steps: dict[Side, list[dict[str, float]]] = {}
        for side in SIDES:
            took = statistics.median(line["seconds"] for line in self.run(side, steps=2))
            steps[side] = self.run(side, steps=max(2, math.ceil(seconds / took)))
            lines = [json.dumps({"side": side, **line}) + "\n" for line in steps[side]]
            (RESULTS / f"ppo_curve_{side}.jsonl").write_text("".join(lines), encoding="utf-8")
        ppo_curve.draw(steps["solon"], steps["trl"], HERE.parent / "docs" / "figures" / "ppo.png")
        for kl, solon, trl in ppo_curve.at_equal_kl(steps["solon"], steps["trl"]):
            more = {"kl": kl, "solon_seconds": solon.seconds, "trl_seconds": trl.seconds}
            report("ppo", "score_at_equal_kl", solon.score, trl.score, None, **more, **self.about)

    def run(self, side: Side, steps: int = STEPS) -> list[dict[str, float]]:
        """One run in a process of its own; the lines it wrote."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            config, out = Path(folder) / "config.json", Path(folder) / "steps.jsonl"
            replace(self.settings[side], steps=steps, out=str(out)).write(config)
            run(side, f"{side}_ppo.py", config)
            return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def rate(steps: Sequence[dict[str, float]], episodes: int) -> float:
    return episodes / statistics.median(step["seconds"] for step in steps[1:])


def prepare(folder: Path, device: str, dtype: torch.dtype) -> Bench:
    """Train the reward model and write it in both forms."""
    source = resolve("embedded")
    tokenizer = load_tokenizer(source)
    model = train_reward(Encoder(tokenizer), new_reward_model(source, device, dtype, Lora(), 0))
    model.save(folder / "solon-reward", tokenizer)
    rows = answers(encoded(Encoder(tokenizer), "evaluation"))[:16]
    ours_B = model.score(rows)
    shift = float((model.head.bias - model.get_buffer("mean")) / model.get_buffer("std"))
    ids = [row.ids for row in rows]
    theirs_B = as_classifier(model, Path(source.path), folder / "trl-reward", ids) + shift
    common = Settings(
        model=str(source.path),
        reward=str(folder / "solon-reward"),
        shift=0.0,
        prompts=texts(*PROMPTS),
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        device="cuda" if device.startswith("cuda") else "cpu",
        episodes=16,
        micro=4,
        epochs=4,
        new_tokens=48,
        temperature=1.0,
        learning_rate=1e-3,
        beta=0.05,
        missing_end_penalty=1.0,
        critic="head",
        steps=STEPS,
        seed=7,
        out="",
    )
    trl = replace(common, reward=str(folder / "trl-reward"), shift=shift, learning_rate=2e-4)
    about = {
        "dtype": common.dtype,
        "device": common.device,
        "trl": TRL,
        "reward_difference": float((ours_B - theirs_B).abs().max()),
    }
    return Bench(folder, {"solon": common, "trl": trl}, about)


def encoded(encoder: Encoder, purpose: Literal["training", "evaluation"]) -> list[EncodedPair]:
    """The constitution's comparisons of that purpose as ids, the better answer first."""

    def row(comparison: Comparison, answer: str) -> Encoded:
        return encoder.encode(comparison.prompt, answer, "stop", 512)

    found = load_constitution("harmless").comparisons(purpose)
    return [EncodedPair(c.prompt, row(c, c.better), row(c, c.worse), 1.0) for c in found]


def answers(pairs: Sequence[EncodedPair]) -> list[Encoded]:
    return sorted(different_answers(pairs), key=lambda row: row.ids)


def train_reward(encoder: Encoder, model: RewardModel) -> RewardModel:
    """One epoch on the constitution's comparisons; normalised on their answers."""
    pairs = encoded(encoder, "training")[:PAIRS]
    plan = plan_steps([p.prompt_id for p in pairs], BATCH, epochs=1, seed=0)
    optimiser = Optimiser(trainable(model), RATE)
    for step, chosen in enumerate(plan):
        optimiser.anneal(step, len(plan))
        learn(model, optimiser, [pairs[i] for i in chosen], max_norm=1.0)
    model.normalise_on(answers(pairs)[:128])
    return model.eval()


@torch.no_grad()
def as_classifier(
    model: RewardModel, path: Path, folder: Path, rows: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """Write the reward model as a sequence classifier that gives score times 1/std; its scores of `rows`.

    Merged in float32. The head has no bias there: like the mean, it belongs into what is added to its score.
    """
    classifier = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    merged: Any = model.trunk.float().merge_and_unload()
    classifier.model.load_state_dict(merged.model.state_dict())
    classifier.score.weight.copy_(model.head.weight / model.get_buffer("std"))
    classifier.save_pretrained(folder)
    hidden = [classifier.model(torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    scores_B: torch.Tensor = classifier.score(torch.stack(hidden)).squeeze(-1)
    return scores_B


if __name__ == "__main__":
    main()
