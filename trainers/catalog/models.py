"""The architectures."""

from __future__ import annotations

from trainers.catalog.entries import Model, Parameter

_WIDTH = Parameter(64, "channels of the first stage", low=1)
_BLOCKS = Parameter(2, "blocks in each of the four stages", low=1)


def _wide_resnet(depth: int, gigaflop: float, millions: float) -> Model:
    return Model(
        "trainers.models.wide_resnet:wide_resnet", f"wide residual network, {depth} layers, 10 times as wide",
        "Zagoruyko & Komodakis 2016, arXiv 1605.07146",
        parameters={
            "depth": Parameter(depth, "layers, 6n + 4", choices=(10, 16, 22, 28, 34, 40, 70)),
            "widen_factor": Parameter(10, "channels of the first stage in units of 16", low=1),
        },
        gigaflop=gigaflop, millions=millions,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "small": Model(
        "trainers.models.small:small", "three conv-norm-ReLU blocks, for a CPU", "this project",
        parameters={
            "width": Parameter(16, "channels of the first block", low=1),
            "norm": Parameter("batch", "normalization layer", choices=("batch", "group")),
            "stem_stride": Parameter(1, "stride of the first block; 2 is three times faster", choices=(1, 2)),
        },
        gigaflop=0.0056, millions=0.024,
    ),
    "preact_resnet18": Model(
        "trainers.models.preact_resnet:preact_resnet18", "pre-activation ResNet-18", "He et al. 2016, arXiv 1603.05027",
        parameters={
            "width": _WIDTH,
            "blocks_per_stage": _BLOCKS,
            "shortcut": Parameter(
                "activated", "what a convolutional shortcut reads: the block's input after BN-ReLU, or raw",
                choices=("activated", "raw"),
            ),
            "final_norm": Parameter(True, "BN-ReLU before the pooling"),
        },
        gigaflop=1.11, millions=11.17,
    ),
    "resnet18": Model(
        "trainers.models.resnet:resnet18", "ResNet-18 with a 3x3 stem", "He et al. 2016, arXiv 1512.03385",
        parameters={"width": _WIDTH, "blocks_per_stage": _BLOCKS},
        gigaflop=1.11, millions=11.17,
    ),
    "wide_resnet28_10": _wide_resnet(28, gigaflop=10.5, millions=36.48),
    "wide_resnet34_10": _wide_resnet(34, gigaflop=13.3, millions=46.16),
}  # fmt: skip
