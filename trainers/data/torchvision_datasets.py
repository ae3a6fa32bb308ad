"""torchvision's data sets, also where PyTorch is built for CPUs and torchvision is not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

_BOX_OPERATORS = ("nms", "qnms")


def torchvision_datasets() -> ModuleType:
    """The module `torchvision.datasets`.

    torchvision's wheels for Linux on the package index want CUDA's libraries: beside a CPU build of PyTorch its
    operators on boxes do not load, and its import fails at the first of them. Reading images needs none, so they are
    declared, without an implementation.
    """
    try:
        return import_module("torchvision.datasets")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in _BOX_OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return import_module("torchvision.datasets")
