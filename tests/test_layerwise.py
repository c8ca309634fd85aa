"""Limits of single layers against their dense blocks."""

import pytest
import torch
from helpers import CASES, reference
from torch import Tensor, nn

from estimators import L1, L2, Objective, SpectralMeasure, UserError
from pruning_limits import MagnitudeProfile
from pruning_limits.crossing import first_crossing
from pruning_limits.isotropic import isotropic_limit
from pruning_limits.layerwise import layer_block, layer_limits
from validation.data import ImageData

Tiny = tuple[nn.Module, list[tuple[Tensor, Tensor]]]


@pytest.mark.parametrize("name", ["ragged", "batch norm", "grouped", "tied", "subset", "idle layer"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_block_is_the_diagonal_block_of_the_dense_matrix(name: str, kind: str) -> None:
    case = CASES[name]
    objective = Objective(case.model(), case.loader(), case.loss_fn, L2(0.3), **case.options)
    matrix = reference(name, torch.float64)[0 if kind == "hessian" else 1]
    start = 0
    for key, weight in objective.chosen.items():
        rows = slice(start, start := start + weight.numel())
        block = layer_block(objective, key, kind) @ torch.eye(weight.numel(), dtype=torch.float64)
        expected = matrix[rows, rows] + 0.3 * torch.eye(weight.numel(), dtype=torch.float64)
        torch.testing.assert_close(block, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_limits_of_small_layers_are_those_of_dense_blocks(tiny: Tiny, kind: str) -> None:
    objective = Objective(*tiny, penalty=L1(1e-3))
    limits = layer_limits(objective, 0.01, kind, steps=64)
    assert [limit.name for limit in limits] == ["0.weight", "2.weight"]
    for limit in limits:
        weight = objective.chosen[limit.name]
        block = layer_block(objective, limit.name, kind) @ torch.eye(weight.numel(), dtype=torch.float64)
        measure = SpectralMeasure.from_eigenvalues(torch.linalg.eigvalsh(block).numpy())
        profile = MagnitudeProfile({limit.name: weight})
        expected = isotropic_limit(measure, profile.curve(), 0.01).sparsity
        assert limit.sparsity == pytest.approx(expected, abs=1e-9)
        assert (limit.weights, limit.standard_error) == (weight.numel(), 0.0)

        def rise(sparsity: float, name: str = limit.name, profile: MagnitudeProfile = profile) -> float:
            pruned = {**objective.chosen, name: objective.chosen[name] * profile.masks(sparsity)[name]}
            vector = torch.cat([part.reshape(-1) for part in pruned.values()])
            return objective.value(vector) - objective.value()

        rises = [rise(count / profile.dimension) for count in range(profile.dimension + 1)]
        low, _ = first_crossing(lambda count, _, rises=rises: rises[count] <= 0.01, profile.dimension)
        assert limit.achieved == low / profile.dimension


def test_limits_of_larger_layers_agree_with_dense_ones_within_their_error(
    trained: nn.Module, digits: ImageData
) -> None:
    objective = Objective(trained, digits.batches("train", 1000), penalty=L1(1e-3), parameters=["7.weight", "9.weight"])
    exact = layer_limits(objective, 0.02, "ggn", steps=600, measure=False)
    rough = layer_limits(objective, 0.02, "ggn", steps=40, probes=4, measure=False)
    for known, estimated in zip(exact, rough, strict=True):
        assert known.standard_error == 0.0 < estimated.standard_error
        assert known.achieved is None
        assert abs(known.sparsity - estimated.sparsity) < 4 * estimated.standard_error + 0.005
    part = layer_limits(objective, 0.02, "ggn", samples=200, steps=40, measure=False)
    again = layer_limits(objective, 0.02, "ggn", samples=200, steps=40, measure=False)
    assert part == again
    assert part != rough


def test_a_layer_of_zeros_can_go(tiny: Tiny) -> None:
    model, data = tiny
    with torch.no_grad():
        model[2].weight.zero_()
    limits = layer_limits(Objective(model, data), 0.01)
    assert (limits[1].sparsity, limits[1].achieved) == (1.0, 1.0)
    assert limits[0].sparsity == 1.0  # nothing passes through the second layer, so the first has no curvature either


def test_wrong_arguments_are_refused(tiny: Tiny) -> None:
    objective = Objective(*tiny)
    with pytest.raises(UserError, match="steps: expected at least 1"):
        layer_limits(objective, 0.01, steps=0)
    with pytest.raises(UserError, match="curvature: expected one of hessian, ggn, got 'fisher'"):
        layer_limits(objective, 0.01, "fisher")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epsilon: expected a positive number"):
        layer_limits(objective, 0.0)
