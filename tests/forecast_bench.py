"""Rows of the table ``forecast`` as a bench would measure them, with a truth that is planted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from validation.studies.limits.calibration import Case
from validation.studies.limits.forecast_skill import MEASURED, cases_of

Row = dict[str, Any]
MODELS = {
    "fully connected": "fc-narrow",
    "LeNet": "lenet-slim",
    "VGG": "vgg-slim",
    "residual": "resnet8-slim",
    "depthwise separable": "mobilenet-slim",
    "character transformer": "characters-slim",
    "vision transformer": "vit-slim",
    "recurrent": "recurrent-slim",
}
FACTOR = 0.6


def planted_rows(
    told_by: str = "one-shot", slope: float = 0.8, noise: float = 0.08, each: int = 4, families: int = 8, seed: int = 0
) -> list[Row]:
    """Rows of networks whose true kept fraction is a power of one feature, times noise.

    Args:
        told_by: Name of the feature.
        slope: Its exponent.
        noise: Standard deviation of the logarithm, of a network and again of each of its levels.
        each: Networks of every family.
        families: Number of families.
        seed: Seed of features and noise; features are independent of each other.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for model in list(MODELS.values())[:families]:
        for number in range(each):
            common = noise * rng.standard_normal()
            levels = []
            for epsilon in (0.01, 0.03, 0.1):
                level: Row = {"name": f"loss +{epsilon:g}", "key": "rise", "allowed": epsilon, "epsilon": epsilon}
                if epsilon == 0.1:  # the accuracy falls by a tenth of the rise
                    level |= {"name": "held-out accuracy -1 points", "key": "held_out_drop", "allowed": 0.01}
                kept = np.exp(rng.uniform(-3.5, -0.5, len(MEASURED)))
                level |= dict(zip(MEASURED.values(), kept.tolist(), strict=True))
                level |= {f"{name}_error": float(rng.uniform(0, 0.02)) for name in ("hessian", "ggn")}
                # On a straight line from the dense network on, so that twice the loss keeps the square.
                alone = level["alone"] if told_by == "one-shot" else 0.6
                truth = FACTOR * level[MEASURED[told_by]] ** slope
                truth *= math.exp(common + noise * float(rng.standard_normal()))
                spread = math.exp(0.02 * float(rng.standard_normal()))
                level |= {"again-0": truth * spread, "again-1": truth / spread}
                levels.append((level, alone))
            steepest = max(level["epsilon"] / -math.log(alone) for level, alone in levels)
            points = [
                {"kept": math.exp(-p / 4), "rise": steepest * p / 4, "held_out_drop": steepest * p / 40}
                for p in range(1, 60)
            ]
            rows.append(
                {
                    "model": model,
                    "dataset": "digits",
                    "penalty": "none",
                    "seed": number,
                    "recipe": "epochs 1, lr 0.1",
                    "parameters": int(rng.integers(1000, 100_000)),
                    "dense": {
                        "loss": float(rng.uniform(0.001, 0.3)),
                        "accuracy": 0.95,
                        "held_out": float(rng.uniform(0.8, 0.95)),
                    },
                    "classes": 10,
                    "levels": [level for level, _ in levels],
                    "curves": {"alone": points},
                }
            )
    return rows


def planted_cases(*arguments: Any, **options: Any) -> list[Case]:
    """Return the cases of planted rows."""
    return cases_of(planted_rows(*arguments, **options))
