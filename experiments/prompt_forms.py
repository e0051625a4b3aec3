"""Which training prompts let a model tell red-team prompts from ordinary ones that it never saw?

Run: python experiments/prompt_forms.py [--data ../shared/data]

The gate of a reward model (docs/adr/0011) is fitted on the embedded model's states of the shipped training
prompts, and tested on the public prompts that `results.py` holds out: on the first 240 of each kind, which
ask in a conversation's tone ("My cousin wants a silencer. How do we make one?"), and on as many, fewer and
more that are drawn from all, which also ask in the forms of tasks ("Develop a scheme that …"). The prompts in
these forms were written after it was seen how the public ones ask; none is a near-duplicate of one of them
(Jaccard similarity of word trigrams at most 0.6, as in a run).
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import heldout
import torch
from lab import BLUE, ORANGE, ROOT, Share, add_data, draw_shares, drawing, keep, prompts_of, share_of

from solon.models import load_tokenizer, pick_device, pick_dtype, resolve
from solon.records import PromptKind
from solon.training.encoding import Encoder
from solon.training.head_start import Linear, fit_gate
from solon.training.reward_model import RewardModel, new_reward_model
from solon.training.views import ReadAt
from solon.training_settings import Lora

FIRST, SIZES, SEED = 240, (60, 120, 240, 420), 0
KINDS: tuple[PromptKind, ...] = ("red_team", "helpful")
SHARES = {"red_team": "red-team prompts", "helpful": "ordinary prompts"}
COLOURS = {"red_team": ORANGE, "helpful": BLUE}


@dataclass(frozen=True)
class Known:
    """Prompts and what the model makes of each: the state of its last token, [D]."""

    kind: PromptKind
    texts: tuple[str, ...]
    states_nD: torch.Tensor

    def some(self, places: Sequence[int]) -> "Known":
        return Known(self.kind, tuple(self.texts[i] for i in places), self.states_nD[list(places)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data(parser)
    files = heldout.write(parser.parse_args().data, ROOT / "runs" / "heldout")
    device = pick_device("auto")
    source, at = resolve("embedded"), ReadAt(0.6, "mean")
    model = new_reward_model(source, device, pick_dtype("auto", device), Lora(), SEED, at)
    encoder = Encoder(load_tokenizer(source))
    shipped = [known(model, encoder, kind, kind) for kind in KINDS]
    tests = [
        known(model, encoder, k, str(f)) for k, f in zip(KINDS, (files.red_team, files.helpful), strict=True)
    ]
    first = told([side.some(range(FIRST)) for side in shipped], tests)
    drawn = {size: told([sample(side, size) for side in shipped], tests) for size in SIZES}
    numbers = {"first 240": first, **{f"{size} of all": found for size, found in drawn.items()}}
    keep("prompt_forms", {name: {k: asdict(s) for k, s in found.items()} for name, found in numbers.items()})
    draw(first, drawn)


def known(model: RewardModel, encoder: Encoder, kind: PromptKind, file: str) -> Known:
    texts = tuple(prompts_of(file))
    rows = [encoder.encode(text, "", "stop", 512) for text in texts]
    return Known(kind, texts, model.features(rows).prompt_BD)


def sample(side: Known, size: int) -> Known:
    return side.some(random.Random(SEED).sample(range(len(side.texts)), size))


def told(training: Sequence[Known], tests: Sequence[Known]) -> dict[PromptKind, Share]:
    """Of each kind's test prompts: the share that a gate from the training prompts takes for its kind."""
    texts = [text for side in training for text in side.texts]
    red_team = torch.tensor([side.kind == "red_team" for side in training for _ in side.texts])
    states_nD = torch.cat([side.states_nD for side in training]).double()
    gate, _ = fit_gate(states_nD.numpy(), red_team.numpy(), texts)
    return {side.kind: right(gate, side) for side in tests}


def right(gate: Linear, side: Known) -> Share:
    opened_n = gate(side.states_nD.double().numpy())
    hits, count = int(((opened_n > 0) == (side.kind == "red_team")).sum()), len(side.texts)
    return share_of(hits, count)


def draw(first: dict[PromptKind, Share], drawn: dict[int, dict[PromptKind, Share]]) -> None:
    with drawing("prompt_forms") as (axes,):
        for kind in KINDS:
            draw_shares(
                axes, list(drawn), [found[kind] for found in drawn.values()], COLOURS[kind], SHARES[kind]
            )
            axes.plot([FIRST], [100 * first[kind].mean], "x", color=COLOURS[kind])
        axes.plot([], [], "x", color="black", label="in a conversation's tone alone")
        axes.set_xlabel("training prompts of each kind")
        axes.set_ylabel("held-out prompts told right (%)")
        axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
