"""The copy of a network in which attacks search: the same function computed faster, or nearly it, in bfloat16."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trainers.models.autocast import Autocast
from trainers.models.normalize import Normalized


def for_search(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode and without parameter gradients.

    In networks of the catalog convolutions are channels-last, and a batch norm that follows one becomes a part of it.
    The logits are those of `model` up to rounding: it is `model` that judges what was found in the copy.
    """
    searching = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(searching, Normalized):
        return searching  # code of the user's own may not bear another layout: `view` does not
    searching.network = _folded(searching.network)
    return searching.to(memory_format=torch.channels_last)


def for_fast_search(model: nn.Module) -> nn.Module:
    """As `for_search`, in bfloat16: on GPUs about twice as fast, and here and there wrong about who fools `model`.

    The first and the last layer of networks of the catalog stay in float32 (`Stem`, `Head`); in code of the user's own
    pixels and logits are rounded as well.
    """
    return Autocast(for_search(model)).eval()


class _Layers(fx.Tracer):
    """Sees every module without children as one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _folded(network: nn.Module) -> nn.Module:
    """`network` without the batch norms that follow a convolution; itself where its forward can't be traced.

    A layer that is called more than once stays: what is folded into it would act in its other places too.
    """
    try:
        graph = _Layers().trace(network)
    except Exception:  # a forward that decides by its data, asks for a length or an integer: each its own error
        return network
    modules = dict(network.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        norm, source = _module(modules, node), node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        convolution = _module(modules, source)
        if isinstance(convolution, nn.Conv2d) and calls[source.target] == 1:
            modules[source.target] = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    return fx.GraphModule(modules, graph)


def _module(modules: dict[str, nn.Module], node: fx.Node) -> Any:
    return modules[str(node.target)] if node.op == "call_module" else None
