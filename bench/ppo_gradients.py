"""Solon's PPO gradients beside those of TRL 1.12.0, on the same batch: the largest relative difference.

Run: python bench/ppo_gradients.py

The embedded model in float32, moved a little off its reference so that the KL counts, answers eight prompts
of unlike length; TRL gets the same answers and scores. Both train all weights by plain gradient descent for
two epochs: in the first every ratio is 1, in the second some are clipped. Compared are the gradients of all
policy weights and of the value head: the norm of the difference over the norm. A last figure is how far
TRL's are from its own second run's; 0 says that it is deterministic.

All answers have the full length. Behind a shorter one TRL has one more position, with a value of its own,
and puts the score there; here the score is at the last token, as in Ziegler et al. 2019, eq. 2. And TRL
whitens by the unbiased variance (n - 1); its advantages are smaller by that factor, which is taken out.
"""

import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from prompts import texts
from record import report
from safetensors.torch import load_file
from torch import Tensor
from trl_environment import TRL, run

from solon.engines.base import GenerateRequest, completions, user
from solon.engines.local import LocalEngine
from solon.models import ModelSource, load_model, load_tokenizer, resolve
from solon.settings import Sampling
from solon.training.encoding import Encoder
from solon.training.policy import Policy
from solon.training.ppo import Targets, micro_loss, targets
from solon.training.ranks import Ranks
from solon.training.rollout import Episode, Rollout, evaluate
from solon.training.views import View
from solon.training_settings import Reinforce

EPISODES, TOKENS, EPOCHS = 8, 12, 2
RATE, BETA, NOISE = 0.05, 0.1, 0.02  # NOISE: of each weight's deviation, what the policy is off the reference


@dataclass(frozen=True)
class Batch:
    """The policy's folder and its answers."""

    policy: Path
    episodes: list[Episode]
    scores_B: Tensor


@torch.no_grad()
def sampled(source: ModelSource, folder: Path) -> Batch:
    """A policy near its reference, written to `folder`, and what it answers."""
    torch.manual_seed(0)
    model, tokenizer = load_model(source, "cpu", torch.float32), load_tokenizer(source)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.add_(NOISE * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder, engine = Encoder(tokenizer), LocalEngine(model, tokenizer, "policy")
    asked = texts("red_team")[: 2 * EPISODES]
    wanted = Sampling(max_tokens=TOKENS, temperature=1.0)
    found = completions(engine, [GenerateRequest(user(text), wanted, i) for i, text in enumerate(asked)])
    full = [(t, c.token_ids) for t, c in zip(asked, found, strict=True) if len(c.token_ids) == TOKENS]
    episodes = []
    for number, (text, ids) in enumerate(full[:EPISODES]):
        answer = (*ids[:-1], encoder.end) if number % 2 else ids
        episodes.append(Episode(encoder.prompt(text), answer, number % 2 == 1, "red_team"))
    return Batch(folder, episodes, torch.randn(len(episodes)))


def of_trl(batch: Batch, reference: str, folder: Path, name: str) -> dict[str, Tensor]:
    """Gradients by epoch and parameter, from TRL's own training loop."""
    out = folder / f"{name}.safetensors"
    config = {
        "policy": str(batch.policy),
        "reference": reference,
        "prompts": [list(e.prompt) for e in batch.episodes],
        "answers": [list(e.answer) for e in batch.episodes],
        "scores": batch.scores_B.tolist(),
        "learning_rate": RATE,
        "beta": BETA,
        "out": str(out),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run("trl", "trl_gradients.py", folder / "config.json")
    return load_file(out)


def of_solon(batch: Batch, reference: ModelSource) -> tuple[dict[str, Tensor], float]:
    """The same, and the share of tokens that the last epoch clipped."""
    source = resolve(str(batch.policy))
    trunk, frozen, critic = (load_model(s, "cpu", torch.float32) for s in (source, reference, source))
    policy = Policy(View(trunk), View(frozen), 1.0, View(critic)).eval()
    torch.nn.init.zeros_(policy.value_head.weight)
    names = {f"policy.{name}": p for name, p in trunk.named_parameters()}
    names["critic.score"] = policy.value_head.weight
    optimiser = torch.optim.SGD(names.values(), lr=RATE)
    settings = Reinforce(episodes=EPISODES, minibatch=EPISODES, beta=BETA, epochs=EPOCHS)
    everyone = [list(range(len(batch.episodes)))]
    rollout: Rollout = evaluate(policy, batch.episodes, batch.scores_B, [everyone])
    aims: Targets = targets(rollout, settings, BETA, Ranks())
    tokens = int(rollout.mask_BT.sum())
    aims = replace(aims, advantage_BT=aims.advantage_BT * math.sqrt((tokens - 1) / tokens))
    kept: dict[str, Tensor] = {}
    figures: dict[str, Any] = {}
    for epoch in range(EPOCHS):
        loss, figures = micro_loss(policy, rollout, aims, everyone[0], settings)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        kept |= {f"{epoch}.{name}": p.grad.clone() for name, p in names.items() if p.grad is not None}
        optimiser.step()
    return kept, figures["clip_share"]


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], prefix: str) -> float:
    """Norm of the difference of all gradients whose name starts so, over the norm of `theirs`."""
    names = [name for name in theirs if name.startswith(prefix)]
    missing = {name for name in names if name not in ours}
    if missing or not names:
        raise SystemExit(f"gradients that one side lacks: {sorted(missing) or prefix}")
    difference = sum(float((ours[name] - theirs[name]).square().sum()) for name in names)
    return float((difference / sum(float(theirs[name].square().sum()) for name in names)) ** 0.5)


def main() -> None:
    reference = resolve("embedded")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batch = sampled(reference, folder / "policy")
        theirs, again = (of_trl(batch, reference.path, folder, run) for run in ("first", "second"))
        ours, clipped = of_solon(batch, reference)
    more = {"trl": TRL, "dtype": "float32", "episodes": len(batch.episodes), "clip_share": clipped}
    for epoch in range(EPOCHS):
        for part in ("policy", "critic"):
            prefix = f"{epoch}.{part}"
            found, noise = apart(ours, theirs, prefix), apart(again, theirs, prefix)
            report("ppo_gradients", f"{part}_epoch_{epoch + 1}_difference", found, noise, None, **more)


if __name__ == "__main__":
    main()
