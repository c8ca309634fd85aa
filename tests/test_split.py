"""The split of a budget over layers against brute force and dense matrices."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import CASES, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from estimators import L1, Objective, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.split import LayerCurve, best_split, compare_splits, layer_curves
from validation.data import ImageData


def cost(curves: list[LayerCurve], split: dict[str, int]) -> float:
    return math.fsum(float(np.interp(split[curve.name], curve.counts, curve.rises)) for curve in curves)


def convex(draw: st.DrawFn, name: str, size: int) -> LayerCurve:
    slopes = sorted(draw(st.lists(st.floats(0, 10), min_size=size, max_size=size)))
    rises = np.concatenate([[0.0], np.cumsum(slopes)])
    return LayerCurve(name, size, tuple(range(size + 1)), tuple(rises.tolist()))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_best_split_of_convex_curves_is_that_of_brute_force(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    curves = [convex(data.draw, f"layer {k}", size) for k, size in enumerate(sizes)]
    count = data.draw(st.integers(0, sum(sizes)))
    split = best_split(curves, count)
    assert sum(split.values()) == count
    assert all(0 <= split[curve.name] <= curve.weights for curve in curves)
    every = (c for c in itertools.product(*(range(size + 1) for size in sizes)) if sum(c) == count)
    least = min(math.fsum(curve.rises[k] for curve, k in zip(curves, c, strict=True)) for c in every)
    assert cost(curves, split) == pytest.approx(least, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_curves_are_split_as_their_convex_hulls(data: st.DataObject) -> None:
    curves = []
    for k in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(2, 5))
        inner = data.draw(st.lists(st.floats(-1, 5), min_size=size, max_size=size))
        curves.append(LayerCurve(f"layer {k}", size, tuple(range(size + 1)), (0.0, *inner)))
    count = data.draw(st.integers(0, sum(curve.weights for curve in curves)))
    hulls = []
    for curve in curves:
        lines = [
            [
                curve.rises[i] + (curve.rises[j] - curve.rises[i]) * (x - i) / (j - i)
                for i, j in itertools.combinations(curve.counts, 2)
                if i <= x <= j
            ]
            for x in curve.counts
        ]
        hulls.append(dataclasses.replace(curve, rises=tuple(min(values) for values in lines)))
    split = best_split(curves, count)
    assert sum(split.values()) == count
    assert cost(hulls, split) == pytest.approx(cost(hulls, best_split(hulls, count)), abs=1e-9)
    between = [
        curve.name
        for curve, hull in zip(curves, hulls, strict=True)
        if cost([curve], split) > cost([hull], split) + 1e-9
    ]
    assert len(between) <= 1


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_curves_and_rises_agree_with_the_dense_matrix(kind: str) -> None:
    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    matrix = reference("ragged", torch.float64)[0 if kind == "hessian" else 1]
    curves = layer_curves(objective, kind, sparsities=(0.25, 0.5))
    start = 0
    for curve, weight in zip(curves, objective.chosen.values(), strict=True):
        rows = slice(start, start := start + weight.numel())
        assert curve.counts == tuple(math.ceil(s * weight.numel()) for s in (0.0, 0.25, 0.5, 1.0))
        profile = MagnitudeProfile({"w": weight})
        for count, rise in zip(curve.counts, curve.rises, strict=True):
            d = profile.removed(count / weight.numel())
            assert rise == pytest.approx(float(0.5 * d @ matrix[rows, rows] @ d), rel=1e-9, abs=1e-14)
    splits = compare_splits(objective, 0.4, curves, kind)
    whole = MagnitudeProfile(objective.chosen)
    d = whole.removed(0.4)
    assert splits.magnitude.counts == {name: int((~mask).sum()) for name, mask in whole.masks(0.4).items()}
    assert splits.magnitude.quadratic == pytest.approx(float(0.5 * d @ matrix @ d), rel=1e-9)
    assert splits.magnitude.measured == pytest.approx(objective.value(whole.vector - d) - objective.value(), rel=1e-9)
    assert sum(splits.best.counts.values()) == sum(splits.magnitude.counts.values()) == math.ceil(0.4 * 35)


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_the_best_split_is_never_worse_by_the_model(trained: nn.Module, digits: ImageData, sparsity: float) -> None:
    objective = Objective(trained, digits.batches("train", 1000), penalty=L1(1e-3))
    splits = compare_splits(objective, sparsity)
    assert splits.best.block <= splits.magnitude.block
    assert splits.sparsity == pytest.approx(sparsity, abs=1e-4)
    assert sum(splits.best.counts.values()) == round(splits.sparsity * objective.dimension)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_budget_of_operations_is_split_as_by_brute_force(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    curves = [convex(data.draw, f"layer {k}", size) for k, size in enumerate(sizes)]
    uses = {curve.name: float(data.draw(st.integers(1, 9))) for curve in curves}
    whole = sum(curve.weights * uses[curve.name] for curve in curves)
    wanted = data.draw(st.floats(0, 1)) * whole
    split = best_split(curves, wanted, uses)
    removed = sum(count * uses[name] for name, count in split.items())
    assert wanted - 1e-6 <= removed < wanted + max(uses.values())
    # No other split that removes as much as the pieces before the last one costs less.
    every = list(itertools.product(*(range(size + 1) for size in sizes)))
    cheapest = {}
    for counts in every:
        amount = sum(count * uses[curve.name] for curve, count in zip(curves, counts, strict=True))
        price = math.fsum(curve.rises[k] for curve, k in zip(curves, counts, strict=True))
        if amount >= removed - 1e-9:
            cheapest[counts] = price
    last = max(
        (
            curve.rises[split[curve.name]] - curve.rises[max(0, split[curve.name] - 1)]
            for curve in curves
            if split[curve.name]
        ),
        default=0.0,
    )
    assert cost(curves, split) <= min(cheapest.values()) + last + 1e-9


@pytest.mark.parametrize("uses", [None, {"0.weight": 3.0, "2.weight": 7.0}])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_all_splits_remove_the_same_up_to_one_weight(uses: dict[str, float] | None, share: float) -> None:
    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    sizes = {name: weight.numel() for name, weight in objective.chosen.items()}
    splits = compare_splits(objective, share, uses=uses)
    amount = uses or dict.fromkeys(sizes, 1.0)
    whole = sum(sizes[name] * amount[name] for name in sizes)
    for split in (splits.best, splits.magnitude, splits.uniform):
        removed = sum(count * amount[name] for name, count in split.counts.items())
        assert split.removed == removed
        assert share * whole - 1e-6 <= removed <= share * whole + max(amount.values())
    for name, count in splits.uniform.counts.items():
        assert abs(count - share * sizes[name]) <= 1
    removed = torch.cat(
        [weight.flatten() * (rank(weight) < splits.uniform.counts[name]) for name, weight in objective.chosen.items()]
    )
    measured = objective.value(objective.vector() - removed) - objective.value()
    assert splits.uniform.measured == pytest.approx(measured, rel=1e-9)


def rank(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten().abs().argsort(stable=True).argsort(stable=True)


def test_measured_curves_take_the_place_of_the_model() -> None:
    from pruning_limits.sensitivity import curves_of, layer_sensitivities

    case = CASES["ragged"]
    objective = Objective(case.model(), case.loader(), case.loss_fn)
    curves = curves_of(layer_sensitivities(objective, sparsities=(0.25, 0.5, 0.75, 1.0), samples=None))
    splits = compare_splits(objective, 0.4, curves)
    assert splits.best.counts == best_split(curves, 14)
    with pytest.raises(UserError, match=r"^uses: expected a positive number for 2\.weight, got None$"):
        compare_splits(objective, 0.4, uses={"0.weight": 1.0})


def test_budgets_out_of_range_are_refused() -> None:
    case = CASES["ragged"]
    with pytest.raises(UserError, match="sparsity: expected a number in"):
        compare_splits(Objective(case.model(), case.loader(), case.loss_fn), 1.5)
    for count in (-1, 4):
        with pytest.raises(UserError, match="count: expected 0 to 3 weights to remove"):
            best_split([LayerCurve("a", 3, (0, 3), (0.0, 1.0))], count)
