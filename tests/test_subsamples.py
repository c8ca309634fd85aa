"""Sub-samples and curvatures of one prediction: drawn once, shared, counted, narrowed, forgotten."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import CASES, assert_close, random, reference, seeded
from torch import nn

from estimators import L2, Hessian, Objective
from estimators.errors import UndefinedGGNError
from estimators.input_subspace import InputSubspace
from pruning_limits.losses import Losses, all_losses
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING, Stopping
from pruning_limits.subsamples import Subsamples


def small_objective(penalty=None):
    case = CASES["ragged"]
    return Objective(case.model(), case.loader(), case.loss_fn, penalty)


def small_subsamples(mask=None, stopping=STOPPING, penalty=None, **options):
    """Sub-samples of a network of 35 weights and 9 samples."""
    return Subsamples(all_losses(small_objective(penalty)), Settings(**options), mask, stopping)


def absolute(model, batch):
    return (model(batch[0]) - batch[1]).abs().mean(1)


# -------------------------------------------------------------------------------------------------------- draws


def test_sub_samples_operators_and_products_are_shared_and_counted():
    subsamples = small_subsamples()
    assert subsamples.subset(5) is subsamples.subset(5)
    assert subsamples.subset(100) is subsamples.subset(9)
    operator = subsamples.operator("ggn", 5)
    assert operator is subsamples.operator("ggn", 5)
    assert operator.curvature.forwards is subsamples.operator("hessian", 5).curvature.forwards
    operator.matmat(random(35, 3))
    subsamples.operator("hessian", 9).matmat(random(35, 2))
    assert subsamples.products == 5
    assert subsamples.samples_seen == 3 * 5 + 2 * 9


def test_small_sub_samples_are_drawn_from_the_pool():
    subsamples = small_subsamples(stopping=Stopping(pool_samples=6), seed=3)
    pool = subsamples.objective.subset(6, 3, subsamples.losses.shares + subsamples.losses.shares.mean())
    assert_close(subsamples.subset(6).sample_losses()[0], pool.sample_losses()[0])
    assert_close(subsamples.subset(4).sample_losses()[0], pool.subset(4, 3).sample_losses()[0])


def test_without_shares_all_samples_are_drawn_alike():
    losses = all_losses(small_objective())
    alike = Losses(losses.objective, losses.values, losses.sizes, losses.total)
    mine = Subsamples(alike, Settings(seed=1)).subset(4).sample_losses()[0]
    assert_close(mine, small_objective().subset(4, 1).sample_losses()[0])


# ------------------------------------------------------------------------------------------------------ coverage


def uneven_subsamples(seed=0, total=60, drawn=None):
    """Sub-samples of data whose shares in the curvature spread over four decades, as of a draw where one is given."""
    objective = Objective(seeded(lambda: nn.Linear(3, 2)), [(random(total, 3), torch.arange(total) % 2)])
    losses = all_losses(objective)
    uneven = dataclasses.replace(losses, shares=torch.logspace(-4, 0, total).double(), total=drawn or total)
    return Subsamples(uneven, Settings(seed=seed))


def probabilities(scores, samples):
    """Bisect the factor c of probabilities min(1, c q) until they sum to the number of samples."""
    low, high = 0.0, samples / float(scores.min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if float((middle * scores).clamp(max=1).sum()) > samples else (middle, high)
    return (low * scores).clamp(max=1)


@pytest.mark.parametrize("samples", [1, 7, 30, 59, 60])
def test_the_coverage_is_that_of_all_samples_one_by_one(samples):
    subsamples = uneven_subsamples()
    shares = subsamples.losses.shares
    drawn = probabilities(shares + shares.mean(), samples)
    strengths = [float(share) ** 0.5 for share in shares]
    expected = sum(float(odds) * strength for odds, strength in zip(drawn, strengths, strict=True)) / sum(strengths)
    assert subsamples.coverage(samples) == pytest.approx(expected, rel=1e-9)
    assert samples / 60 <= subsamples.coverage(samples) <= 1


def test_draws_cover_on_average_what_is_stated():
    strengths = uneven_subsamples().losses.shares ** 0.5
    covered = [
        float(strengths[subset.picked].sum() / strengths.sum())
        for subset in (uneven_subsamples(seed).subset(12) for seed in range(300))
    ]
    error = float(np.std(covered)) / len(covered) ** 0.5
    assert 0 < error < 0.01
    assert np.mean(covered) == pytest.approx(uneven_subsamples().coverage(12), abs=4 * error)


def test_a_draw_of_the_losses_covers_its_share_of_all_data():
    part, whole = uneven_subsamples(drawn=600), uneven_subsamples()
    for samples in (5, 60):
        assert part.coverage(samples) == pytest.approx(whole.coverage(samples) / 10, rel=1e-12)


def test_without_shares_the_coverage_is_the_share_of_the_samples():
    subsamples = uneven_subsamples(drawn=600)
    alike = Subsamples(dataclasses.replace(subsamples.losses, shares=None), Settings())
    assert [alike.coverage(samples) for samples in (6, 60)] == [0.01, 0.1]


# ---------------------------------------------------------------------------------------------------- operators


def test_removed_weights_have_no_curvature():
    mask = torch.arange(35) % 3 > 0
    hessian = reference("ragged", torch.float64)[0]
    masked = torch.where(mask[:, None] & mask, hessian, 0.0)
    assert_close(small_subsamples(mask).operator("hessian", 9).matmat(torch.eye(35).double()), masked)


@pytest.mark.parametrize(("masked", "expected"), [(False, 0.3), (True, 0.0)])
def test_the_penalty_is_the_floor_of_the_ggn_unless_weights_are_removed(masked, expected):
    mask = torch.arange(35) > 0 if masked else None
    subsamples = small_subsamples(mask, penalty=L2(0.3))
    eigenvalues = torch.linalg.eigvalsh(subsamples.operator("ggn", 9).matmat(torch.eye(35).double()))
    assert subsamples.floor == pytest.approx(expected)
    assert float(eigenvalues[0]) == pytest.approx(expected, abs=1e-12)
    assert small_subsamples().floor == 0.0


def wide_inputs():
    """A network whose first layer has more inputs than there are samples."""
    model = seeded(lambda: nn.Sequential(nn.Linear(80, 8), nn.Tanh(), nn.Linear(8, 8)))
    return Objective(model, [(random(20, 80, seed=3), torch.arange(20) % 8)])


def test_a_narrow_operator_has_the_eigenvalues_of_the_whole_one_but_zeros():
    subsamples = Subsamples(all_losses(wide_inputs()), Settings())
    whole, narrow = (subsamples.operator("hessian", 20, narrow) for narrow in (False, True))
    assert isinstance(whole.curvature, Hessian)
    assert isinstance(narrow, InputSubspace)
    values = [
        torch.linalg.eigvalsh(operator.matmat(torch.eye(operator.shape[0]).double())) for operator in (whole, narrow)
    ]
    rest = torch.zeros(whole.shape[0] - narrow.shape[0]).double()
    assert len(rest) > 0
    assert_close(torch.cat([values[1], rest]).sort().values, values[0])


def test_there_is_no_narrow_operator_where_weights_are_removed():
    objective = wide_inputs()
    subsamples = Subsamples(all_losses(objective), Settings(), torch.arange(objective.dimension) > 0)
    assert subsamples.operator("hessian", 20, narrow=True) is subsamples.operator("hessian", 20)


# ------------------------------------------------------------------------------------------------------ forgetting


def test_the_forward_passes_are_kept_until_the_ggn_is_done():
    subsamples = small_subsamples()
    forwards = subsamples.operator("hessian", 9).curvature.forwards
    first = list(forwards)
    subsamples.forget("hessian", 9)
    assert next(iter(forwards)) is first[0]
    subsamples.forget("ggn", 9)
    assert next(iter(forwards)) is not first[0]


def test_all_forward_passes_can_be_dropped():
    subsamples = small_subsamples()
    kept = {samples: subsamples.operator("hessian", samples).curvature.forwards for samples in (4, 9)}
    first = {samples: list(forwards) for samples, forwards in kept.items()}
    subsamples.forget_forwards()
    for samples, forwards in kept.items():
        assert next(iter(forwards)) is not first[samples][0]


# --------------------------------------------------------------------------------------------------------- silence


def linear_in_outputs():
    case = CASES["ragged"]
    data = [(x, nn.functional.one_hot(y, 3).double()) for x, y in case.loader()]
    return Subsamples(all_losses(Objective(case.model(), data, absolute)), Settings())


def test_a_ggn_that_is_zero_is_silent_and_its_hessian_is_not():
    subsamples = linear_in_outputs()
    assert subsamples.silence("ggn", 9).startswith("the GGN is zero, ")
    assert small_subsamples().silence("ggn", 9) == ""


def test_a_product_that_was_taken_is_not_taken_again_for_silence():
    subsamples = small_subsamples()
    operator, vectors = subsamples.operator("ggn", 9), random(35, 1)
    weights = subsamples.curved("ggn", operator, vectors, operator.matmat(vectors))
    assert weights.all()
    assert subsamples.silence("ggn", 9) == ""
    assert subsamples.products == 1


def test_layers_that_only_the_hessian_curves_act():
    subsamples = linear_in_outputs()
    assert subsamples.operator("hessian", 9).products == 0
    subsamples.silence("hessian", 9)
    assert subsamples.silence("ggn", 9) == linear_in_outputs().silence("ggn", 9)


def test_a_loss_without_a_second_derivative_has_a_remark_of_its_hessian_only():
    def margin(model, batch):
        return nn.functional.multi_margin_loss(model(batch[0]), batch[1], reduction="none")

    case = CASES["ragged"]
    subsamples = Subsamples(all_losses(Objective(case.model(), case.loader(), margin)), Settings())
    with pytest.raises(UndefinedGGNError):
        subsamples.operator("ggn", 9).matmat(random(35, 1))
    assert subsamples.remarks == ()
    subsamples.operator("hessian", 9).matmat(random(35, 1))
    assert len(subsamples.remarks) == 1
    assert subsamples.remarks[0].startswith("products by finite differences of gradients, relative error ")
