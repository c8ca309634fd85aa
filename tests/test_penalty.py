"""Weight penalties against their formulas and against automatic differentiation."""

import pytest
import torch
from helpers import assert_close, random

from estimators import L1, L2, Objective, UserError
from estimators.penalty import refuse_penalty
from pruning_limits import predict_limit


@pytest.mark.parametrize("coefficient", [-1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("penalty", [L1, L2])
def test_bad_penalties(penalty, coefficient):
    with pytest.raises(UserError, match="penalty"):
        penalty(coefficient)


PARTS = [random(3, 4), random(5, seed=1), torch.zeros(2, dtype=torch.float64)]


@pytest.mark.parametrize(("penalty", "value"), [(L1(0.3), lambda w: 0.3 * w.abs()), (L2(0.3), lambda w: 0.15 * w * w)])
def test_value_gradient_and_curvature_are_those_of_the_formula(penalty, value):
    assert_close(penalty.value(PARTS), sum(float(value(part).sum()) for part in PARTS))
    flat = torch.cat([part.flatten() for part in PARTS[:2]])
    by_autograd = torch.autograd.functional.jacobian(lambda w: value(w).sum(), flat)
    assert_close(penalty.gradient(flat), by_autograd)
    hessian = torch.autograd.functional.hessian(lambda w: value(w).sum(), flat)
    assert_close(hessian, penalty.curvature * torch.eye(len(flat), dtype=torch.float64), scale=1.0)
    gradients = [random(*part.shape, seed=7) for part in PARTS]
    expected = [g + penalty.gradient(part) for g, part in zip(gradients, PARTS, strict=True)]
    penalty.add_gradient_(PARTS, gradients)
    for gradient, sum_by_hand in zip(gradients, expected, strict=True):
        assert_close(gradient, sum_by_hand)


def test_the_subgradient_at_zero_is_zero():
    assert L1(2.0).gradient(torch.tensor([0.0, -0.0, 1e-30])).tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("penalty", [L1(1e-3), L2(1e-3)])
def test_sums_over_many_float32_weights_are_taken_in_float64(penalty):
    weights = torch.full((1 << 20,), 0.1)
    exact = float(penalty.value([weights[:1]])) * len(weights)
    assert penalty.value([weights]).dtype == torch.float64
    assert float(penalty.value([weights])) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3)])
def test_removed_weights_lower_the_penalty(penalty):
    """A quadratic loss whose objective is stationary at w: what docs/theory/criterion.md says of its two rises."""
    root, w = random(8, 8), random(8, seed=1)
    hessian = root @ root.T
    slope = -penalty.gradient(w)
    removed = torch.where(w.abs() <= w.abs().median(), w, 0.0)
    loss = float(-slope @ removed + removed @ hessian @ removed / 2)
    objective = loss + penalty.value([w - removed]) - penalty.value([w])
    extra = 0.3 * removed.abs().sum() if isinstance(penalty, L1) else 0.15 * removed.square().sum()
    assert loss == pytest.approx(float(objective + extra), rel=1e-12)
    curved = hessian + penalty.curvature * torch.eye(8, dtype=torch.float64)
    assert float(objective) == pytest.approx(float(removed @ curved @ removed / 2), rel=1e-12)


@pytest.mark.parametrize("wrong", [1e-4, "l1", L1, (L1, 0.1), {"l1": 0.1}], ids=repr)
def test_what_is_no_penalty_is_refused(wrong):
    model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
    for use in (
        lambda: refuse_penalty(wrong),
        lambda: Objective(model, data, penalty=wrong),
        lambda: predict_limit(model, data, penalty=wrong),
    ):
        with pytest.raises(UserError, match=r"^penalty: expected L1\(coefficient\), L2\(coefficient\) or None, got "):
            use()


@pytest.mark.parametrize("penalty", [L1, L2])
def test_a_coefficient_is_a_number(penalty):
    with pytest.raises(UserError, match=r"^penalty: L. coefficient must be a number >= 0, got '0\.1'$"):
        penalty("0.1")
