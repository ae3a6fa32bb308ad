"""A classifier's answers held against the labels."""

from __future__ import annotations

import torch
from torch import Tensor


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each answer is right [B], of logits [B, K] and labels [B]; one that is not finite is not."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def best_wrong(scores: Tensor, labels: Tensor) -> Tensor:
    """max_{k≠y} s_k [B] of scores [B, K], logits or probabilities, and labels [B]."""
    return scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """s_y − max_{k≠y} s_k [B] of scores [B, K], logits or probabilities: negative where the answer is wrong."""
    return scores.gather(1, labels[:, None]).squeeze(1) - best_wrong(scores, labels)
