"""Pruners that go by what reaches a layer, and re-tuning among the pruners."""

import copy

import pytest
import torch
from helpers import assert_close
from torch import nn

from pruning_limits.reconstruction import IMAGES, PLACES
from validation.masks import prunable
from validation.pruners import pruner
from validation.pruners.calibration import calibration_images
from validation.pruners.layer_inputs import input_moments
from validation.pruners.magnitude import magnitude_masks
from validation.pruners.obs_layerwise import magnitude_counts, reconstruct
from validation.pruners.wanda import wanda_masks, wanda_scores


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
    images = x[::IMAGES].double()  # all samples are one chunk
    unfolded = nn.functional.unfold(images, 3, padding=1).transpose(0, 1).flatten(1)
    unfolded = unfolded[:, :: (unfolded.shape[1] // (PLACES * len(images))) | 1]
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
