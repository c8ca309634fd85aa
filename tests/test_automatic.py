"""Differentiating twice where torch can, finite differences where it cannot, and what a prediction says of them."""

import pytest
import torch
from helpers import CASES, classification, random, reference, seeded, small_limit
from test_refusals import Once, nested
from torch import nn

from estimators import GGN, DifferenceGGN, DifferenceHessian, Hessian, Objective, UserError
from estimators.automatic import AutomaticCurvature
from pruning_limits import predict_limit
from pruning_limits.losses import all_losses
from pruning_limits.settings import Settings
from pruning_limits.subsamples import Subsamples

USUAL = {"hessian": Hessian, "ggn": GGN}
DIFFERENCES = {"hessian": DifferenceHessian, "ggn": DifferenceGGN}
kinds = pytest.mark.parametrize("kind", USUAL)
REASON = "layer '2.1' (Once) has no second derivative (OnceSquared is marked once_differentiable)"


class Squared(nn.Module):
    def forward(self, x):
        return x.square()


@kinds
def test_products_of_functions_with_second_derivatives_have_the_same_bits(kind):
    case, vectors = CASES["ragged"], random(35, 2)
    operator = AutomaticCurvature(kind, Objective(case.model(), case.loader()))
    expected = USUAL[kind](Objective(case.model(), case.loader()))
    assert torch.equal(operator.matmat(vectors), expected @ vectors)
    assert (operator.reason, operator.error, operator.products) == ("", 0.0, 2)
    assert (operator.shape, operator.dtype, operator.blocks) == (expected.shape, expected.dtype, expected.blocks)


@kinds
def test_finite_differences_take_over_where_a_second_derivative_is_missing(kind):
    objective, vectors = Objective(seeded(lambda: nested(Once())), classification(4)()), random(28, 2)
    operator, expected = AutomaticCurvature(kind, objective), DIFFERENCES[kind](objective)
    assert torch.equal(operator.matmat(vectors), expected @ vectors)
    assert operator.reason == REASON
    assert operator.products == expected.products
    assert 0 < operator.error == expected.error < 1e-8
    operator.forget()
    operator.forget_products()
    assert torch.equal(operator.matmat(vectors), expected @ vectors)


def test_other_errors_pass():
    def loss(model, batch):
        raise RuntimeError("out of luck")

    operator = AutomaticCurvature("hessian", Objective(CASES["ragged"].model(), classification(4)(), loss))
    for _ in range(2):
        with pytest.raises(UserError, match="out of luck"):
            operator.matmat(random(35, 1))
    assert operator.reason == ""


def test_removed_weights_have_no_curvature():
    mask = torch.arange(28) % 3 > 0
    operator = AutomaticCurvature("hessian", Objective(seeded(lambda: nested(Once())), classification(4)()), mask=mask)
    product = operator.matmat(random(28, 1))
    assert operator.reason
    assert not product[~mask].any()
    assert product[mask].all()


def test_sub_samples_remark_every_reason_once():
    subsamples = Subsamples(all_losses(Objective(seeded(lambda: nested(Once())), classification(4)())), Settings())
    operators = [subsamples.operator(kind, samples) for kind in USUAL for samples in (4, 9)]
    assert subsamples.remarks == ()
    for operator in operators:
        operator.matmat(random(28, 1))
    error = max(operator.error for operator in operators)
    remark = f"products by finite differences of gradients, relative error {error:.1g}: {REASON}"
    assert subsamples.remarks == (remark,)
    assert subsamples.error("hessian", 4) == operators[0].error


# ------------------------------------------------------------------------------------------------------ predictions


def limit_with(layer, dtype, **options):
    """Predict the limit of a network of 540 weights, most of whose labels it fits."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 60), nn.Tanh(), layer, nn.Linear(60, 3)))
    x = random(60, 6, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        y = (model(x) + 0.3 * random(60, 3, seed=2)).argmax(1)
    return predict_limit(model.to(dtype), [(x.to(dtype), y)], epsilon=0.02, **options)


@pytest.mark.parametrize("options", [{}, {"curvature": "ggn", "negative": "clip"}], ids=["hessian", "ggn"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-7), (torch.float32, 1e-3)], ids=["float64", "float32"])
def test_limits_are_those_with_second_derivatives(dtype, close, options):
    options = {"steps": 24, "probes": 1, "measure": False} | options
    usual, differences = (limit_with(layer, dtype, **options) for layer in (Squared(), Once()))
    for name in ("sparsity", "retrained", "directional"):
        assert getattr(differences, name) == pytest.approx(getattr(usual, name), abs=close)
    assert differences.sharpness.trace == pytest.approx(usual.sharpness.trace, rel=close)
    assert not any("finite differences" in note for note in usual.notes)
    assert [note for note in differences.notes if "finite differences" in note] == list(differences.notes[-1:])
    assert differences.notes[-1].endswith(
        "layer '2' (Once) has no second derivative (OnceSquared is marked once_differentiable)"
    )


def test_the_error_of_products_widens_the_interval():
    usual, differences = (
        limit_with(layer, torch.float32, steps=24, probes=1, measure=False) for layer in (Squared(), Once())
    )
    assert usual.evidence.hessian.sample_error == 0
    assert differences.evidence.hessian.sample_error > abs(differences.sparsity - usual.sparsity)
    assert differences.interval[0] < usual.interval[0]
    assert differences.interval[1] > usual.interval[1]


def test_moved_eigenvalues_enclose_those_of_a_disturbed_matrix():
    """Hoffman and Wielandt: the root mean square of the moves is at most that of the error matrix."""
    matrix, noise = reference("ragged", torch.float64)[0], random(35, 35)
    noise = (noise + noise.T) * (0.05 * matrix.norm() / (noise + noise.T).norm())
    moves = torch.linalg.eigvalsh(matrix + noise) - torch.linalg.eigvalsh(matrix)
    estimate = small_limit(measure=False).evidence.hessian
    nodes = torch.from_numpy(estimate.measure.nodes)
    up, down = (torch.from_numpy(estimate.moved(0.05, side).measure.nodes) for side in (True, False))
    assert float(moves.square().mean().sqrt()) <= 0.05 * float(matrix.norm()) / 35**0.5
    shift = 0.05 * float(nodes.square().mean().sqrt())
    assert torch.allclose(up, 1.05 * nodes.abs() + shift)
    assert torch.allclose(down, (0.95 * nodes.abs() - shift).clamp(min=0))
    clipped = torch.from_numpy(estimate.moved(0.05, True, "clip").measure.nodes)
    assert torch.allclose(clipped, 1.05 * nodes.clamp(min=0) + shift)
