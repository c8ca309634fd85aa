"""The sparsity that networks reach: pruned alone, re-trained, iteratively, re-tuned, and optimised on the mask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from estimators import Objective
from estimators.vectors import named
from pruning_limits import MagnitudeProfile
from pruning_limits.fine_tuning import FineTuning
from pruning_limits.fine_tuning import Network as Tuned
from pruning_limits.magnitude import removed_count
from pruning_limits.settings import Retuning
from validation.data import ImageData
from validation.masks import prunable
from validation.pruners.magnitude import magnitude_masks
from validation.studies.limits.forecast_curves import (
    COARSE,
    QUARTERS,
    Curve,
    Level,
    Measured,
    kept_fraction,
    last_place,
)
from validation.studies.limits.masked_optimum import masked_optimum
from validation.tables.writing import Row
from validation.training import Network, apply_masks, train

SEEDS = 1000  # added to the network's seed for every training with its masks
ITERATIONS = 100


@dataclass(frozen=True)
class Truths:
    """A trained network whose pruned offspring are measured.

    Attributes:
        network: What it is and how it is trained.
        model: The trained network.
        data: Its data.
        levels: What may be lost.
        dense: What it reaches.
        folder: Where curves are kept.
    """

    network: Network
    model: nn.Module
    data: ImageData
    levels: Sequence[Level]
    dense: Measured
    folder: Path

    @property
    def dimension(self) -> int:
        """Number D of prunable weights."""
        return sum(weight.numel() for weight in prunable(self.model).values())

    def sparsity(self, place: int) -> float:
        """Removed fraction of a place of the grid."""
        return removed_count(1 - kept_fraction(place), self.dimension) / self.dimension

    def at(self, sparsity: float) -> Row:
        """Prune by magnitude to any sparsity, do nothing else, and measure."""
        return self.dense.lost(Measured.of(_pruned(self.model, sparsity), self.data), 1 - sparsity)

    def alone(self) -> list[Row]:
        """Prune by magnitude and do nothing else."""
        return self._curve("alone", lambda place: self.at(self.sparsity(place))).downwards(1, 1)

    def again(self, run: int) -> list[Row]:
        """Prune by magnitude and train with the whole recipe once more, from its full learning rate."""

        def measure(place: int) -> Row:
            model = _pruned(self.model, self.sparsity(place))
            return self._point(self._trained(model, place, SEEDS * (1 + run)), place)

        return self._curve(f"again-{run}", measure).searched()

    def iterative(self) -> list[Row]:
        """Prune by a factor sqrt(2) again and again, each time with the whole recipe (rate rewinding)."""
        rounds: dict[int, nn.Module] = {0: self.model}

        def round_of(place: int) -> nn.Module:
            if place not in rounds:
                model = _pruned(round_of(place - COARSE), self.sparsity(place))
                rounds[place] = self._trained(model, place, SEEDS)
                rounds.pop(place - COARSE)
            return rounds[place]

        def measure(place: int) -> Row:
            return self._point(round_of(place), place)

        return self._curve("iterative", measure).downwards(COARSE, COARSE)

    def retuned(self, samples: int) -> list[Row]:
        """Prune in stages that halve the kept weights, each with brief fine-tuning, as the rung of that name."""
        objective = Objective(self.model, self.data.batches("train", 1000))
        tuning = FineTuning(objective, samples, Retuning().passes, self.network.seed)
        states: dict[int, Tuned] = {}

        def stage(place: int) -> Tuned:
            if place not in states:
                base = tuning.dense if place - QUARTERS <= 0 else stage(place - QUARTERS)
                states[place] = tuning.stage(base, removed_count(1 - kept_fraction(place), self.dimension))
            return states[place]

        def measure(place: int) -> Row:
            network, model = stage(place), copy.deepcopy(self.model)
            weights = named(network.vector, tuning.objective.chosen)
            model.load_state_dict({**model.state_dict(), **weights, **network.buffers})
            return self._point(model, place)

        curve = self._curve(f"retuned-{samples}", measure)
        points = curve.downwards(QUARTERS, QUARTERS) + curve.downwards(QUARTERS + COARSE, QUARTERS)
        return sorted(points, key=lambda point: -point["kept"])

    def optimised(self) -> list[Row]:
        """Minimise the mean training loss over the kept weights of magnitude masks, by L-BFGS on all data."""
        objective = self.double()
        profile = MagnitudeProfile(objective.chosen)

        def measure(place: int) -> Row:
            kept = torch.zeros(profile.dimension, dtype=torch.bool, device=profile.order.device)
            kept[profile.order[removed_count(self.sparsity(place), profile.dimension) :]] = True
            optimum = masked_optimum(objective, profile.vector, kept, ITERATIONS)
            model = copy.deepcopy(self.model)
            weights = named(optimum.weights.float(), objective.chosen)
            model.load_state_dict({**model.state_dict(), **weights})
            return self._point(model, place)

        return self._curve("optimised", measure).searched()

    def double(self) -> Objective:
        """Return the mean loss on all training data in float64, of a copy of the network."""
        batches = [(x.double(), y) for x, y in self.data.batches("train", 1000)]
        return Objective(copy.deepcopy(self.model).double(), batches)

    def _curve(self, name: str, measure: Callable[[int], Row]) -> Curve:
        return Curve(measure, self.levels, last_place(self.dimension), self.folder / f"{name}.json")

    def _trained(self, model: nn.Module, place: int, seed: int) -> nn.Module:
        masks = magnitude_masks(model, self.sparsity(place))
        train(model, self.data, self.network.recipe, self.network.seed + seed, masks=masks)
        return model.eval()

    def _point(self, model: nn.Module, place: int) -> Row:
        return self.dense.lost(Measured.of(model, self.data), 1 - self.sparsity(place))


def _pruned(model: nn.Module, sparsity: float) -> nn.Module:
    pruned = copy.deepcopy(model)
    apply_masks(pruned, magnitude_masks(pruned, sparsity))
    return pruned
