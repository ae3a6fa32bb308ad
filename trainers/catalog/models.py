"""The architectures."""

from __future__ import annotations

from trainers.catalog.entries import Model, Parameter

_WIDTH = Parameter(64, "channels of the first stage", low=1)
_BLOCKS = Parameter(2, "blocks in each of the four stages", low=1)

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
}  # fmt: skip
