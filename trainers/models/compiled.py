"""A network compiled for training: one graph for the attack, one for the update."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._functorch import config as differentiation
from torch.func import functional_call


class Compiled(nn.Module):
    """`module`, its forward and backward compiled by `torch.compile` when they are first needed.

    Images that require gradients are an attack's. They go through a graph of their own, which takes the weights for
    constants: a compiled backward gives all gradients that its graph knows of, so the weights' would be computed in
    every step of the attack. For the same reason nothing can be differentiated twice.

    Where compiling fails (no compiler, an operator that it does not know) it warns once and goes on uncompiled:
    `is_compiled` is False then. What is compiled is compiled as a whole: PyTorch would otherwise run pieces, or after
    a number of variants everything, uncompiled without a word.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.is_compiled = True
        # The number of variants is counted for the code, not for the network: a process trains one run after the other.
        torch._dynamo.reset()
        # Of functions, not of the module: a compiled module would be a second child with the same parameters.
        self._update = torch.compile(self._plain, dynamic=False, fullgraph=True)
        self._attack = torch.compile(self._of_constant_weights, dynamic=False, fullgraph=True)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in [0,1]."""
        if not self.is_compiled:
            return self._plain(images)
        try:
            with self._now(images):
                compiled: Tensor = (self._attack if images.requires_grad else self._update)(images)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error).split("\n")[:2])
            warnings.warn(f"torch.compile failed, training goes on uncompiled: {reason}", stacklevel=2)
            self.is_compiled = False
            return self._plain(images)
        return compiled

    def _now(self, images: Tensor) -> AbstractContextManager[None]:
        """Context in which graphs are made, each with its backward: made later, one that fails would end the run.

        On CPUs they recompute more in the backward instead of storing it. In eval mode a forward keeps masks of ReLUs,
        which PyTorch writes and reads so slowly in bfloat16 that they cost more than all the rest. A hundredth less
        memory leaves out the large ones of narrow networks, at the price of a cheap convolution; attacks are about
        twice as fast then.
        """
        settings: dict[str, object] = {"force_non_lazy_backward_lowering": True}
        if images.device.type == "cpu" and not self.training:
            settings["activation_memory_budget"] = 0.99
        patched: AbstractContextManager[None] = differentiation.patch(settings)
        return patched

    def _plain(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)
        return logits

    def _of_constant_weights(self, images: Tensor) -> Tensor:
        constants = {name: weight.detach() for name, weight in self.module.named_parameters()}
        logits: Tensor = functional_call(self.module, constants, (images,))
        return logits
