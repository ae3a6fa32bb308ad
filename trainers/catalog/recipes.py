"""How the papers train: schedule, epochs, momentum, weight decay, augmentation, normalization, network.

ε and the step sizes are not theirs but this project's (8/255 and a quarter of it for multi-step methods), so that rows
compare; where a paper's own differ (0.031 and 0.007 in TRADES, MART and MAIL) set `attack`. Only SVHN keeps the step of
1/255 of PGD training. The batch is 128. The warm-up of the single-step recipes on SVHN shrinks ε, the step and the
random start together, as N-FGSM's code does; AAER's leaves the start whole, GradAlign's shrinks the step alone. With
another method or schedule than its own, a recipe leaves out what belongs to those: the step, a perturbation's start,
cycled momentum.
"""

from __future__ import annotations

from typing import Any

from trainers.catalog.entries import Recipe

_FLIP_SVHN: dict[str, Any] = {"data": {"augment": True, "flip": True}}
_NO_FLIP: dict[str, Any] = {"data": {"augment": True, "flip": False}}
_TRIANGULAR: dict[str, Any] = {"learning_rate": 0.2, "momentum": 0.9, "momentum_at_peak": 0.8, "weight_decay": 5e-4}
_WONG_NET = {"name": "preact_resnet18", "shortcut": "raw"}
_WONG: dict[str, Any] = {
    "model": _WONG_NET,
    "optimizer": _TRIANGULAR,
    "schedule": {"name": "triangular", "peak": 0.5},
}
_SVHN_SINGLE_STEP: dict[str, Any] = {
    "optimizer": {"learning_rate": 0.05},
    "schedule": {"name": "triangular", "peak": 0.4},
    "attack": {"warmup_epochs": 5},
}
_RICE_SVHN: dict[str, Any] = {
    "data": {"augment": False, "normalization": "half"},
    "optimizer": {"learning_rate": 0.01},
    "attack": {"step_size": "1/255"},
}
_RICE_NET = {"name": "preact_resnet18", "shortcut": "activated"}
_TWO_DROPS: dict[str, Any] = {
    "epochs": 200,
    "optimizer": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "piecewise", "milestones": [0.5, 0.75], "factor": 0.1},
}
_MART: dict[str, Any] = {
    "epochs": 120,
    "model": {"name": "resnet18"},
    "data": {"normalization": "none"},
    "optimizer": {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 3.5e-3},
}
_AWP_SVHN = {"method": {"name": "sat_awp", "weight_perturbation": {"name": "awp", "start": 5 / 200}}}

RECIPES: dict[str, Recipe] = {
    "weat": Recipe(
        "WEAT, arXiv 2407.06315",
        "ResNet-18, one cycle of 100 epochs to 0.1, momentum 0.95-0.85-0.95, no normalization",
        {
            "method": {"name": "weat_nat"},
            "epochs": 100,
            "model": {"name": "resnet18"},
            "data": {"augment": True, "flip": True, "normalization": "none"},
            "optimizer": {"learning_rate": 0.1, "momentum": 0.95, "momentum_at_peak": 0.85, "weight_decay": 5e-4},
            "schedule": {"name": "onecycle", "peak": 0.25},
        },
    ),
    "rice": Recipe(
        "Rice et al. 2020, arXiv 2002.11569",
        "PreActResNet-18, 200 epochs at 0.1, divided by 10 at half and three quarters",
        {
            "method": {"name": "sat"},
            "model": _RICE_NET,
            **_TWO_DROPS,
        },
        {"cifar10": {"data": {"padding_mode": "reflect"}}, "svhn": _RICE_SVHN},
    ),
    "fgsm_rs": Recipe(
        "Wong et al. 2020, arXiv 2001.03994",
        "PreActResNet-18, 15 epochs, triangular to 0.2 at half, momentum 0.9-0.8-0.9",
        {
            "method": {"name": "fgsm_rs"},
            "epochs": 15,
            **_WONG,
        },
    ),
    "n_fgsm": Recipe(
        "de Jorge et al. 2022, arXiv 2202.01181",
        "PreActResNet-18, 30 epochs, triangular to 0.2 at half, momentum 0.9-0.8-0.9",
        {
            "method": {"name": "n_fgsm"},
            "epochs": 30,
            **_WONG,
        },
        {"svhn": _SVHN_SINGLE_STEP | _NO_FLIP},
    ),
    "aaer": Recipe(
        "AAER, Lin et al. 2023, arXiv 2404.08154",
        "as n_fgsm; 15 epochs on svhn",
        {
            "method": {"name": "aaer"},
            "epochs": 30,
            **_WONG,
        },
        {
            "svhn": _SVHN_SINGLE_STEP | _FLIP_SVHN | {"epochs": 15},
            "tiny_imagenet": {"data": {"padding": 8}, "model": {"shortcut": "activated"}},
        },
    ),
    "grad_align": Recipe(
        "Andriushchenko & Flammarion 2020, arXiv 2007.02617",
        "PreActResNet-18 without its last BN-ReLU, 30 epochs (svhn 15), triangular to 0.3 at 40 %",
        {
            "method": {"name": "grad_align"},
            "epochs": 30,
            "model": {**_WONG_NET, "final_norm": False},
            "optimizer": {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"name": "triangular", "peak": 0.4},
        },
        {"svhn": _SVHN_SINGLE_STEP | _NO_FLIP | {"epochs": 15}},
    ),
    "trades": Recipe(
        "Zhang et al. 2019, arXiv 1901.08573",
        "WRN-34-10, 76 epochs at 0.1, the last two at a tenth of it, no normalization",
        {
            "method": {"name": "trades"},
            "epochs": 76,
            "model": {"name": "wide_resnet34_10"},
            "data": {"normalization": "none"},
            "optimizer": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
            "schedule": {"name": "piecewise", "milestones": [74 / 76], "factor": 0.1},
        },
    ),
    "mart": Recipe(
        "MART, Wang et al. 2020, ICLR 2020",
        "ResNet-18, 120 epochs at 0.01 with three drops, weight decay 3.5e-3, no normalization",
        {
            "method": {"name": "mart"},
            # Its code counts epochs from 1 and drops from 75, 90 and 100 on; MAIL's counts from 0.
            "schedule": {"name": "piecewise", "milestones": [74 / 120, 89 / 120, 99 / 120], "factor": 0.1},
            **_MART,
        },
    ),
    "mail": Recipe(
        "MAIL, Wang et al. 2021, arXiv 2106.07904",
        "as mart, each drop an epoch later",
        {
            "method": {"name": "mail_at"},
            "schedule": {"name": "piecewise", "milestones": [75 / 120, 90 / 120, 100 / 120], "factor": 0.1},
            **_MART,
        },
    ),
    "awp": Recipe(
        "Wu et al. 2020, arXiv 2004.05884",
        "as rice, with adversarial weight perturbation",
        {
            "method": {"name": "sat_awp"},
            "model": _RICE_NET,
            **_TWO_DROPS,
        },
        {"cifar10": {"data": {"padding_mode": "reflect"}}, "svhn": _RICE_SVHN | _AWP_SVHN},
    ),
    "trades_awp": Recipe(
        "Wu et al. 2020, arXiv 2004.05884",
        "WRN-34-10, 200 epochs at 0.1, divided by 10 at half and three quarters, no normalization",
        {
            "method": {"name": "trades_awp"},
            "model": {"name": "wide_resnet34_10"},
            "data": {"normalization": "none"},
            **_TWO_DROPS,
        },
    ),
}
