"""Fine-tuning's loss: that of the answers alone, whatever rows share and wherever their padding is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from solon.training.answer_trainer import IGNORED, AnswerTrainer

PROMPT = [20, 21, 22, 23, 24, 25, 26, 27, 28]
ROWS = [
    ([5, 6, 7, 8, 9], 3),
    ([*PROMPT, 4, 5], 9),
    ([4, 5, 6], 1),
    ([*PROMPT, 6, 7, 2], 9),
    ([9, 8, 7, 6, 5, 4, 3], 4),
]  # Ids, and how many are the prompt's; two rows answer the same one


class _Listening(torch.nn.Module):
    """Keeps what the model was given."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.given: list[Tensor] = []

    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        self.given.append(input_ids)
        return self.model(input_ids=input_ids, **more)


def _batch(left: bool) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _ in ROWS)
    rows = []
    for ids, prompt in ROWS:
        room = [0] * (width - len(ids))
        labels = [IGNORED] * prompt + ids[prompt:]
        parts = ((room, ids), (room, [1] * len(ids)), ([IGNORED] * len(room), labels))
        rows.append([a + b if left else b + a for a, b in parts])
    ids_BT, mask_BT, labels_BT = (torch.tensor(column) for column in zip(*rows, strict=True))
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}


def _loss(model: _Listening, batch: dict[str, Tensor]) -> Tensor:
    trainer = AnswerTrainer.__new__(AnswerTrainer)  # Its loss alone: opening it wants a dataset and a folder
    trainer.args = SimpleNamespace(average_tokens_across_devices=False)
    trainer._causal = lambda _: model.model  # type: ignore[method-assign]
    loss: Tensor = trainer.compute_loss(model, batch)
    return loss


def test_the_loss_is_that_of_each_answer_alone(tiny_model_folder: Path) -> None:
    model = _Listening(AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval())
    alone = []
    for ids, prompt in ROWS:
        logits = model.model(input_ids=torch.tensor([ids])).logits[0]
        alone += cross_entropy(logits[prompt - 1 : -1], torch.tensor(ids[prompt:]), reduction="none").unbind()
    expected = torch.stack(alone).mean()
    for left in (False, True):
        torch.testing.assert_close(_loss(model, _batch(left)), expected, atol=1e-5, rtol=1e-5)
    for ids_BT in model.given:
        assert sorted(ids_BT.flatten().tolist()).count(PROMPT[0]) == 1, "the common prompt is read once"
