"""Pruners that go by what reaches a layer, and re-tuning among the pruners."""

import copy

import pytest
import torch
from helpers import assert_close, random
from torch import nn

from validation.layer_inputs import columns, input_moments
from validation.masks import prunable
from validation.pruners import pruner
from validation.pruners.calibration import calibration_images
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.obs_layerwise import damped, magnitude_counts, reconstruct, reconstructed, saliencies
from validation.pruners.wanda import wanda_masks, wanda_scores

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
        found = reconstructed(row[None], kept, moments)
        assert_close(found[0], expected, scale=float(row.abs().max()))
        assert not found[0, order].any()


def test_the_reconstruction_is_the_least_squares_fit_of_the_outputs():
    x, weight = correlated(), random(ROWS, FEATURES, seed=2)
    kept = random(ROWS, FEATURES, seed=3) > 0
    found = reconstructed(weight, kept, x.T @ x / len(x))
    for row, keep, new in zip(weight, kept, found, strict=True):
        assert_close(new[keep], torch.linalg.lstsq(x[:, keep], x @ row).solution)


def test_saliencies_are_the_rises_of_the_output_error():
    x, weight = correlated(), random(ROWS, FEATURES, seed=2)
    moments = damped(x.T @ x / len(x))
    found = saliencies(weight, x.T @ x / len(x))
    for place in range(FEATURES):
        kept = torch.ones_like(weight, dtype=torch.bool)
        kept[:, place] = False
        change = reconstructed(weight, kept, moments) - weight
        assert_close(found[:, place], (change @ moments * change).sum(1))


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
    found = torch.cat(parts, 1) @ columns(layer, x)[: sum(part.shape[1] for part in parts)]
    out = layer(x)
    expected = out.T if out.dim() == 2 else out.transpose(0, 1).flatten(1)
    assert_close(found, expected)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")])
def test_other_layers_have_no_columns(layer):
    assert columns(layer, torch.zeros(1, 4, 5, 5)) is None


def test_moments_of_a_transformer_are_seen_but_for_what_is_no_module_call():
    model = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).eval()
    moments = input_moments(model, torch.randn(7, 5, 8))
    assert set(moments) == {"self_attn.in_proj_weight", "linear1.weight", "linear2.weight"}
    assert [len(moments[name]) for name in sorted(moments)] == [9, 17, 9]
    assert all(float(value[-1, -1]) == pytest.approx(1.0) for value in moments.values())


def test_reconstruction_lowers_the_error_of_the_outputs_and_keeps_the_counts(problem):
    x = calibration_images(problem)
    counts = magnitude_counts(problem.dense, 0.6)
    errors = {}
    for name in ("reconstructed", "magnitude"):
        model = copy.deepcopy(problem.dense).eval()
        masks = magnitude_masks(model, 0.6)
        if name == "reconstructed":
            masks = reconstruct(model, x, counts)
        else:
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    weight.mul_(masks.get(key, 1))
        with torch.no_grad():
            errors[name] = float((model(x) - problem.dense(x)).square().mean())
        assert {key: int((~mask).sum()) for key, mask in masks.items()} == counts
    assert errors["reconstructed"] < 0.5 * errors["magnitude"]


def test_wanda_scores_are_weights_times_the_norms_of_their_inputs(problem):
    x = calibration_images(problem)
    scores = wanda_scores(problem.dense, x)
    first = next(iter(prunable(problem.dense)))
    weight = prunable(problem.dense)[first]
    unfolded = nn.functional.unfold(x.double(), 3, padding=1).transpose(0, 1).flatten(1)
    expected = weight.abs().flatten(1).double() * unfolded.square().mean(1).sqrt()
    assert_close(scores[first].flatten(1), expected, torch.float32)
    counts = magnitude_counts(problem.dense, 0.7)
    masks = wanda_masks(problem.dense, x, counts)
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == counts
    assert float(scores[first][~masks[first]].max()) <= float(scores[first][masks[first]].min())


def test_re_tuning_beats_pruning_alone(problem):
    images = next(iter(problem.data.batches("train", 200)))
    losses = {}
    for name in ("lomp", "retuned"):
        result = pruner(name)(problem, 0.5)
        with torch.no_grad():
            losses[name] = float(nn.functional.cross_entropy(result.model(images[0]), images[1]))
        assert result.epochs >= problem.recipe.epochs
    assert losses["retuned"] < losses["lomp"]
