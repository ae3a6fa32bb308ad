"""Answers held against labels: which are right, and by how much."""

from __future__ import annotations

import math

import torch

from trainers.answers import best_wrong, is_correct, margin

SCORES = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [-1.0, -2.0, -5.0]])
LABELS = torch.tensor([0, 1, 2])


def test_the_margin_is_that_to_the_best_wrong_class() -> None:
    assert best_wrong(SCORES, LABELS).tolist() == [2.5, 3.0, -1.0]
    assert margin(SCORES, LABELS).tolist() == [0.5, -2.0, -4.0]


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, math.nan], [math.inf, 0.0], [1.0, -math.inf]])
    assert is_correct(logits, torch.zeros(5, dtype=torch.long)).tolist() == [True, False, False, False, False]
