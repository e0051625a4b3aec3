"""The policy with its value head, on one trunk, and its reference: the same trunk without adapters.

Tensor names carry their shape: B episodes, T positions, N answer tokens of the batch laid end to end,
D width, V vocabulary. Logits exist for answer positions only, never for the prompt's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solon.training.batching import answer_positions, mask_of, pad_right
from solon.training.encoding import Encoded
from solon.training.losses import entropy, token_logprobs


@dataclass(frozen=True)
class Reading:
    """What the policy says of answer tokens, float32, [N] each: log-probability, value, entropy (nats)."""

    logp_N: Tensor
    value_N: Tensor
    entropy_N: Tensor


class Policy(nn.Module):
    """A causal language model with adapters, and a value head that starts at zero.

    The value of a token's state is read before the token is chosen, where its logits are read too.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.value_head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        # Old, new and reference log-probabilities are all of the distribution that was sampled from.
        self._temperature = temperature

    def forward(self, episodes: Sequence[Encoded]) -> Reading:
        """Read all answer tokens of the episodes, in order, with gradients."""
        device = self.value_head.weight.device
        ids_BT, lengths_B = pad_right([e.ids for e in episodes], 0)
        ids_BT, lengths_B = ids_BT.to(device), lengths_B.to(device)
        mask_BT = mask_of(lengths_B, ids_BT.shape[1])
        causal = self.causal_model()
        hidden_BTD = causal.model(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        prompts = torch.tensor([len(e.prompt) for e in episodes])
        answers = torch.tensor([len(e.answer) for e in episodes])
        rows_N, columns_N = answer_positions(prompts, answers)
        hidden_ND = hidden_BTD[rows_N.to(device), columns_N.to(device)]
        chosen_N = torch.tensor([t for e in episodes for t in e.answer], device=device)
        logits_NV = causal.lm_head(hidden_ND)
        return Reading(
            token_logprobs(logits_NV, chosen_N, self._temperature),
            self.value_head(hidden_ND.float()).squeeze(-1),
            entropy(logits_NV.detach().float() / self._temperature),
        )

    @torch.no_grad()
    def reference_logprobs(self, episodes: Sequence[Encoded]) -> Tensor:
        """Log-probabilities [N] under the model before reinforcement: adapters switched off."""
        with self.model.disable_adapter():
            logp_N: Tensor = self(episodes).logp_N
        return logp_N

    def causal_model(self) -> Any:
        """The transformers model itself, with the adapters inside."""
        return self.model.get_base_model()
