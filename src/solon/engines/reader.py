"""Reading texts with a local model, without generating: log-probabilities and hidden states of answers.

Rows that start alike are packed into trees (`engines.trees`), so that a common start is computed once. The
batches are put together from the rows' content: results do not depend on the order of the requests.

Names carry shapes: B trees, N read positions of a batch, V vocabulary, L layers, P poolings, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solon.engines.base import START_TOKENS, Pooling
from solon.engines.hooks import before_head, blocks, hidden_at, plain_head, shares_starts
from solon.engines.trees import TREE_TOKENS, Packed, Tree, common_start, pack, plant
from solon.training.batching import budget_batches
from solon.training.encoding import Encoded
from solon.training.head import log_normalisers

_ENOUGH_CPU, _ENOUGH_GPU = 2048, 8192  # Tokens of a batch whose products run at full speed
_HEAD_ROWS = 512  # Rows of logits that are float32 at once.


class Reader:
    """Reads rows with one model. `fill` is any token id: padding is never looked at."""

    def __init__(self, model: Any, fill: int, batch_tokens: int) -> None:
        self._model = model
        self._fill = fill
        self._budget = batch_tokens

    @torch.inference_mode()
    def logprobs(self, rows: Sequence[Encoded]) -> Iterator[tuple[int, Tensor]]:
        """The place of every row, and the log-probabilities of its answer tokens, float32 on the CPU."""
        for trees, packed in self._batches(rows):
            for tree, logp_rows in zip(trees, self._tree_logprobs(rows, trees, packed), strict=True):
                yield from zip(tree.rows, logp_rows, strict=True)

    def _tree_logprobs(
        self, rows: Sequence[Encoded], trees: Sequence[Tree], packed: Packed
    ) -> Iterator[list[Tensor]]:
        """The head is applied once to every node that an answer token follows."""
        asked = [
            (b, path[len(rows[i].prompt) - 1 + k], token)
            for b, tree in enumerate(trees)
            for i, path in zip(tree.rows, tree.paths, strict=True)
            for k, token in enumerate(rows[i].answer)
        ]
        nodes = list(dict.fromkeys((b, node) for b, node, _ in asked))
        place = {node: n for n, node in enumerate(nodes)}
        where = torch.tensor([[b, node - packed.start] for b, node in nodes], device=self._model.device)
        node_of = torch.tensor([place[b, node] for b, node, _ in asked], device=self._model.device)
        tokens = torch.tensor([token for *_, token in asked], device=self._model.device)
        logp = self._asked(packed, (where[:, 0], where[:, 1]), node_of, tokens).cpu()
        counts = [[len(rows[i].answer) for i in tree.rows] for tree in trees]
        parts = iter(torch.split(logp, [count for tree in counts for count in tree]))
        for tree_counts in counts:
            yield [next(parts) for _ in tree_counts]

    def _asked(self, packed: Packed, where: tuple[Tensor, Tensor], node_of: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities of the asked tokens, float32, each at one of the nodes that are at `where`."""
        head_VD = plain_head(self._model)
        if head_VD is None:
            with before_head(self._model, where):
                logits_NV = self._model(**packed.arguments).logits[0]
            chosen: Tensor = logits_NV[node_of, tokens].float()
            return chosen - _logsumexp(logits_NV)[node_of]
        hidden_ND: Tensor = self._model.base_model(**packed.arguments).last_hidden_state[where]
        normaliser_N = log_normalisers(hidden_ND, head_VD)
        return _chosen(hidden_ND, head_VD, node_of, tokens) - normaliser_N[node_of]

    @torch.inference_mode()
    def features(
        self, rows: Sequence[Encoded], layers: Sequence[float], poolings: Sequence[Pooling]
    ) -> NDArray[np.float32]:
        """Pooled hidden states of every row's answer, [rows, L, P, D]."""
        config = self._model.config.get_text_config()
        depths = [round(layer * len(blocks(self._model))) for layer in layers]
        found = np.zeros((len(rows), len(layers), len(poolings), config.hidden_size), dtype=np.float32)
        trunk = self._model.base_model
        for trees, packed in self._batches(rows):
            states = hidden_at(self._model, depths, lambda packed=packed: trunk(**packed.arguments))  # type: ignore[misc]
            for b, tree in enumerate(trees):
                for i, path in zip(tree.rows, tree.paths, strict=True):
                    columns = [node - packed.start for node in path[len(rows[i].prompt) :]]
                    answer_LTD = torch.stack([state[b, columns] for state in states]).float()
                    found[i] = torch.stack([_pool(answer_LTD, p) for p in poolings], 1).cpu().numpy()
        return found

    def _batches(self, rows: Sequence[Encoded]) -> Iterator[tuple[list[Tree], Packed]]:
        most = min(TREE_TOKENS, self._budget)
        trees = plant([row.ids for row in rows], most, shares_starts(self._model))
        enough = _ENOUGH_CPU if self._model.device.type == "cpu" else _ENOUGH_GPU
        for batch in budget_batches([len(tree.ids) for tree in trees], self._budget, enough):
            chosen = [trees[i] for i in batch]
            shortest = min(len(rows[i].prompt) for tree in chosen for i in tree.rows)
            several = len(chosen) > 1 and shares_starts(self._model)
            start = common_start(chosen, shortest - 1) if several else 0
            yield chosen, pack(self._model, chosen, start, self._fill)


def _chosen(hidden_ND: Tensor, head_VD: Tensor, node_of: Tensor, tokens: Tensor) -> Tensor:
    """Logits of the asked tokens, computed in float32.

    In bfloat16 a logit near 20 is rounded to an eighth, which would be half of what tells two options apart.
    """
    parts = zip(torch.split(node_of, _HEAD_ROWS), torch.split(tokens, _HEAD_ROWS), strict=True)
    return torch.cat([(hidden_ND[n].float() * head_VD[t].float()).sum(-1) for n, t in parts])


def _logsumexp(logits_NV: Tensor) -> Tensor:
    return torch.cat([part.float().logsumexp(-1) for part in torch.split(logits_NV, _HEAD_ROWS)])


def _pool(answer_LTD: Tensor, pooling: Pooling) -> Tensor:
    """[L, D] of an answer's hidden states [L, T, D]."""
    if pooling == "last":
        return answer_LTD[:, -1]
    kept = answer_LTD[:, :START_TOKENS] if pooling == "start" else answer_LTD
    return kept.double().mean(1).float()
