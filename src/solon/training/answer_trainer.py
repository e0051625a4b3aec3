"""TRL's SFTTrainer with what rows share read once, and the head over the vocabulary at answer positions only.

TRL's fused head skips masked positions on a GPU; on a CPU it is slower than a dense one. Gathering the
answer positions before the head gives the same loss for a fraction of the work on any device.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from solon.engines.hooks import before_head
from solon.training.encoding import Encoded
from solon.training.fused_lora import fuse
from solon.training.planting import planted

IGNORED = -100  # The label that the loss skips, by PyTorch's and transformers' convention


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """Mean cross-entropy over all answer tokens of the batch, in nats a token."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        config = self.model.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            # TRL wants the experts' auxiliary loss, which is not in ours and reads a mask as one of rows.
            config.output_router_logits = False
        if not self.is_deepspeed_enabled:  # It gathers a layer's weights when that layer itself is called
            fuse(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        device, rows = inputs["input_ids"].device, _rows(inputs)
        causal = self._causal(model)
        laid = planted(causal, [row.ids for row in rows])
        chosen_N = torch.tensor([token for row in rows for token in row.answer], device=device)
        with before_head(causal, laid.chosen_at(rows, device)):
            outputs = model(**laid.arguments)
        total = cross_entropy(outputs.logits[0].float(), chosen_N, reduction="sum")
        count = len(chosen_N) if num_items_in_batch is None else num_items_in_batch
        loss = total / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The count is of all ranks, and data parallelism averages the gradients over them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _causal(self, model: Any) -> Any:
        unwrapped = self.accelerator.unwrap_model(model)
        return unwrapped.get_base_model() if hasattr(unwrapped, "peft_config") else unwrapped


def _rows(inputs: dict[str, Tensor]) -> list[Encoded]:
    """The rows of a batch without their padding. What has labels, a row's last tokens, is its answer."""
    rows = []
    columns = (inputs[name].cpu() for name in ("input_ids", "labels", "attention_mask"))
    for ids_T, labels_T, mask_T in zip(*columns, strict=True):
        ids, answer = ids_T[mask_T.bool()].tolist(), int((labels_T != IGNORED).sum())
        rows.append(Encoded(tuple(ids[: len(ids) - answer]), tuple(ids[len(ids) - answer :])))
    return rows
