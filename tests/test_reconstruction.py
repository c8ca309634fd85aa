"""Layer-wise pruning with the optimal brain surgeon against small dense solutions."""

import pytest
import torch
from helpers import assert_close, random, seeded
from torch import nn

from estimators import Objective, UserError
from pruning_limits.reconstruction import columns, damped, layers_of, moments_of, reconstructed, saliencies

ROWS, FEATURES = 5, 12


def correlated(samples=80):
    return random(samples, FEATURES) @ (torch.eye(FEATURES) + 0.5 * random(FEATURES, FEATURES, seed=1)).double()


def brain_surgeon(weight, moments, removals):
    """Remove weights of one row one after the other, by the formulas of the optimal brain surgeon, densely."""
    weight, inverse, order = weight.clone(), torch.linalg.inv(moments), []
    for _ in range(removals):
        scores = weight.square() / inverse.diagonal()
        scores[order] = torch.inf
        place = int(scores.argmin())
        weight -= weight[place] / inverse[place, place] * inverse[:, place]
        inverse = inverse - torch.outer(inverse[:, place], inverse[place]) / inverse[place, place]
        order.append(place)
        weight[order] = 0.0
        inverse[order, :] = inverse[:, order] = 0.0
        inverse[order, order] = 1.0
    return weight, order


def test_the_reconstruction_is_that_of_the_exact_brain_surgeon():
    x, weight = correlated(), random(ROWS, FEATURES, seed=2)
    moments = x.T @ x / len(x)
    for row in weight:
        expected, order = brain_surgeon(row, moments, 7)
        kept = torch.ones(1, FEATURES, dtype=torch.bool)
        kept[0, order] = False
        rows = reconstructed(row[None], kept, moments)
        assert_close(rows[0], expected, scale=float(row.abs().max()))
        assert not rows[0, order].any()


def test_the_reconstruction_is_the_least_squares_fit_of_the_outputs():
    x, weight = correlated(), random(ROWS, FEATURES, seed=2)
    kept = random(ROWS, FEATURES, seed=3) > 0
    rows = reconstructed(weight, kept, x.T @ x / len(x))
    for row, keep, new in zip(weight, kept, rows, strict=True):
        assert_close(new[keep], torch.linalg.lstsq(x[:, keep], x @ row).solution)


def test_saliencies_are_the_rises_of_the_output_error():
    x, weight = correlated(), random(ROWS, FEATURES, seed=2)
    moments = damped(x.T @ x / len(x))
    rises = saliencies(weight, moments)
    for place in range(FEATURES):
        kept = torch.ones_like(weight, dtype=torch.bool)
        kept[:, place] = False
        change = reconstructed(weight, kept, moments) - weight
        assert_close(rises[:, place], (change @ moments * change).sum(1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, (2, 3), stride=2, padding=1, dilation=2),
        nn.Conv2d(3, 4, 1, bias=False),
    ],
)
def test_columns_are_what_the_rows_of_the_weight_are_multiplied_with(layer):
    layer = layer.double()
    x = random(5, 6) if isinstance(layer, nn.Linear) else random(5, 3, 8, 9)
    parts = [layer.weight.flatten(1)] + ([] if layer.bias is None else [layer.bias[:, None]])
    products = torch.cat(parts, 1) @ columns(layer, x)[: sum(part.shape[1] for part in parts)]
    out = layer(x)
    expected = out.T if out.dim() == 2 else out.transpose(0, 1).flatten(1)
    assert_close(products, expected)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")])
def test_other_layers_have_no_columns(layer):
    assert columns(layer, torch.zeros(1, 4, 5, 5)) is None


def test_moments_are_those_of_what_reaches_the_layers():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    x, y = random(40, 6), torch.arange(40) % 3
    objective = Objective(model, [(x, y)])
    layers = layers_of(model, objective.names)
    parts = [(x[:25], y[:25]), (x[25:], y[25:])]
    moments = moments_of(layers, lambda: [objective.losses(objective.chosen, part) for part in parts])
    for name, inputs in (("0.weight", x), ("2.weight", model[1](model[0](x)))):
        joined = torch.cat([inputs, torch.ones(40, 1, dtype=torch.float64)], 1)
        assert_close(moments.of[name], joined.T @ joined / 40)
    assert moments.operations == 2 * 40 * (7**2 + 6**2)  # a product and a sum per entry and sample
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_weights_of_two_layers_are_left_out():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["c"].weight = model["b"].weight
    assert list(layers_of(model, ["a.weight", "b.weight", "c.weight"])) == ["a.weight"]


def test_undefined_moments_are_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"^loader: what reaches a layer is NaN or infinite; check the data$"):
            damped(torch.eye(3) * bad)
