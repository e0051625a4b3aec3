"""Many principles in one forward pass: labels a second of the choice judge against one forward a prompt.

Run: python bench/labels.py [--pairs 64] [--slices 4] [--dtype bfloat16] [--device auto]

Both sides label the same pairs with the same 16 principles in both orders, with the same prompts (two worked
comparisons before each). The peer is transformers as it is usually called: prompts sorted by length, in
left-padded batches of 16, one forward pass a prompt, the logits of the last position alone. The pairs are
cut into slices; each is timed on both sides in turn, and the figure is the median of the slices' ratios.
The difference of the probabilities is measured on all of them. In bfloat16 either side is rounded in its own
way, so both are measured against float32 as well.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from peers import left_padded
from record import device_options, peak_memory_mb, report

from solon.constitution import Principle, load_constitution
from solon.engines.local import LocalEngine, open_engine
from solon.feedback.base import Question
from solon.feedback.choice import ChoiceJudge, swapped
from solon.feedback.demonstrated import Demonstrated, demonstrated
from solon.feedback.options import CHOICES
from solon.models import pick_device, pick_dtype, resolve

PRINCIPLES, BATCH = 16, 16
Labels = list[tuple[float, float]]


def questions(pairs: int, principles: Sequence[Principle]) -> list[list[Question]]:
    """`pairs` groups of questions: the constitution's worked comparisons, each under every principle."""
    constitution = load_constitution("harmless")
    chosen = [*constitution.comparisons("evaluation"), *constitution.comparisons("training")][:pairs]
    return [[Question(p, c.prompt, c.better, c.worse) for p in principles] for c in chosen]


@torch.inference_mode()
def one_forward_each(engine: LocalEngine, judge: ChoiceJudge, asked: Sequence[Question]) -> Labels:
    """The peer: P(a) in both orders of every question, a forward pass for each prompt."""
    tokenizer, model = engine.tokenizer, engine.model
    option_ids = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in CHOICES]
    common = 0
    while option_ids[0][common] == option_ids[1][common]:
        common += 1
    prompts = []
    for question in asked:
        for order in (question, swapped(question)):
            turns = [{"role": m.role, "content": m.content} for m in judge._talk(order)]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            prompts.append([*ids, *option_ids[0][:common]])
    order_of = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    first_p = [0.0] * len(prompts)
    letters = [ids[common] for ids in option_ids]
    for start in range(0, len(order_of), BATCH):
        rows = order_of[start : start + BATCH]
        ids, mask = left_padded([prompts[i] for i in rows], 0, model.device)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=1,
            use_cache=False,
        ).logits[:, -1, letters]
        for i, p in zip(rows, torch.softmax(logits.float(), -1)[:, 0].tolist(), strict=True):
            first_p[i] = p
    return [(first_p[2 * k], 1.0 - first_p[2 * k + 1]) for k in range(len(asked))]


def branched(judge: ChoiceJudge, asked: Sequence[Question]) -> Labels:
    found = [judgement.orders for judgement in judge.compare(asked)]
    return [orders for orders in found if orders is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--slices", type=int, default=4)
    device_options(parser)
    options = parser.parse_args()
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    engine = open_engine(resolve("embedded"), device, dtype, 16384)
    constitution = load_constitution("harmless")
    principles = constitution.principles[:PRINCIPLES]
    shown = demonstrated(constitution.comparisons("training"), constitution.principles, 2, 0)
    judge = ChoiceJudge(engine, shown)
    groups = questions(options.pairs, principles)
    size = -(-len(groups) // options.slices)
    ours_rate, peer_rate = [], []
    ours_all: Labels = []
    peer_all: Labels = []
    branched(judge, groups[0][:2])  # warm up both sides
    one_forward_each(engine, judge, groups[0][:2])
    for start in range(0, len(groups), size):
        asked = [question for group in groups[start : start + size] for question in group]
        began = time.perf_counter()
        ours = branched(judge, asked)
        middle = time.perf_counter()
        peer = one_forward_each(engine, judge, asked)
        ended = time.perf_counter()
        ours_rate.append(len(asked) / (middle - began))
        peer_rate.append(len(asked) / (ended - middle))
        ours_all += ours
        peer_all += peer
    report(
        "labels",
        "labels_per_second",
        statistics.median(ours_rate),
        statistics.median(peer_rate),
        statistics.median(a / b for a, b in zip(ours_rate, peer_rate, strict=True)),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        pairs=len(groups),
        principles=PRINCIPLES,
        slices=len(ours_rate),
        difference=difference(ours_all, peer_all),
        peak_memory_mb=round(peak_memory_mb(device)),
        **to_float32(groups, shown, device, ours_all, peer_all) if dtype != torch.float32 else {},
    )


def difference(a: Labels, b: Labels) -> dict[str, float]:
    """Of the probabilities in each order, and of the labels, which are their means over both orders."""
    orders = [abs(x - y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    labels = [abs(sum(one) - sum(other)) / 2 for one, other in zip(a, b, strict=True)]
    return {
        "largest": max(orders),
        "mean": statistics.mean(orders),
        "largest_of_labels": max(labels),
        "mean_of_labels": statistics.mean(labels),
    }


def to_float32(
    groups: Sequence[Sequence[Question]], shown: Demonstrated, device: str, ours: Labels, peer: Labels
) -> dict[str, dict[str, float]]:
    """How far both sides are from the same probabilities in float32."""
    judge = ChoiceJudge(open_engine(resolve("embedded"), device, torch.float32, 16384), shown)
    exact = branched(judge, [question for group in groups for question in group])
    return {"solon_to_float32": difference(ours, exact), "peer_to_float32": difference(peer, exact)}


if __name__ == "__main__":
    main()
