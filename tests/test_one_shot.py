from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import random
from torch import Tensor, nn

from estimators import L1, L2, Objective
from pruning_limits import one_shot
from pruning_limits.crossing import first_crossing
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.measured import Bar, Point, crossing
from pruning_limits.metrics import accuracy
from pruning_limits.one_shot import PairedDifferences, draws_of, mean_and_error, measured_points, one_shot_limit

SAMPLES, DRAWN = 5000, 1024


@dataclass(frozen=True)
class Network:
    """A trained network, its data, and what plain PyTorch says of it with its smallest weights set to zero."""

    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def dimension(self) -> int:
        return sum(layer.weight.numel() for layer in self.model if isinstance(layer, nn.Linear))

    def pruned(self, count: int) -> nn.Module:
        """Set the smallest weights to zero in a copy, by sorting their magnitudes."""
        model = copy.deepcopy(self.model)
        weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
        cut = sorted(float(value) for weight in weights for value in weight.detach().abs().reshape(-1))
        with torch.no_grad():
            for weight in weights:
                weight *= weight.abs() > (cut[count - 1] if count else -1.0)
        return model

    def losses(self, count: int) -> Tensor:
        """Losses of a pruned copy, float64."""
        with torch.no_grad():
            return nn.functional.cross_entropy(self.pruned(count)(self.x), self.y, reduction="none").double()

    def hits(self, count: int) -> Tensor:
        """Right answers of a pruned copy, 0 or 1."""
        with torch.no_grad():
            return (self.pruned(count)(self.x).argmax(1) == self.y).double()

    def objective(self, *sizes: int, **options: object) -> Objective:
        """Return the objective on batches of some sizes; one batch without."""
        batches = list(zip(self.x.split(list(sizes or [SAMPLES])), self.y.split(list(sizes or [SAMPLES])), strict=True))
        return Objective(self.model, batches, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def network() -> Network:
    """A network of 120 weights and 5,000 samples whose loss does not rise steadily when weights are removed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres, y = torch.randn(3, 12), torch.arange(SAMPLES) % 3
        x = centres[y] + torch.randn(SAMPLES, 12)
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(x[:1000]), y[:1000])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Network(model, x, y)


@pytest.fixture(scope="module")
def rises(network: Network) -> list[float]:
    dense = network.losses(0)
    return [float((network.losses(count) - dense).mean()) for count in range(network.dimension + 1)]


def compared(objective: Objective, draws: Sequence[Objective] | None = None, sign: int = 1) -> PairedDifferences:
    draws = draws_of(objective) if draws is None else draws
    return PairedDifferences(draws, MagnitudeProfile(objective.chosen), objective.sample_losses(), sign)


# ------------------------------------------------------------------------------------------------------ draws


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (100, [100]),
        (4095, [4095]),
        (4096, [1024, 4096]),
        (6143, [1024, 6143]),
        (6144, [1024, 2048, 6144]),
        (10_000, [1250, 3333, 10_000]),
        (24_576, [2048, 8192, 24_576]),
        (30_000, [2048, 8192, 30_000]),
    ],
)
def test_draws_are_an_eighth_and_a_third_of_all_data_within_bounds(samples: int, expected: list[int]) -> None:
    objective = Objective(nn.Linear(1, 2), [(torch.zeros(samples, 1), torch.zeros(samples, dtype=torch.long))])
    draws = draws_of(objective)
    assert [part.samples for part in draws] == expected
    assert draws[-1] is objective


def test_a_larger_draw_than_the_memory_allows_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (torch.zeros(40000, 1), torch.zeros(40000, dtype=torch.long))  # 12 bytes a sample
    monkeypatch.setattr(one_shot, "DRAWN_BYTES", 12 * 8192)
    assert len(draws_of(Objective(nn.Linear(1, 2), [batch]))) == 3
    monkeypatch.setattr(one_shot, "DRAWN_BYTES", 12 * 8192 - 1)
    assert [part.samples for part in draws_of(Objective(nn.Linear(1, 2), [batch]))] == [2048, 40000]


def test_the_seed_names_the_draw(network: Network) -> None:
    objective = network.objective(3000, 2000)
    first, again, different = (draws_of(objective, seed)[0].picked for seed in (1, 1, 2))
    assert first is not None
    assert different is not None
    assert first.tolist() == (again.tolist() if again is not None else None)
    assert len(set(first.tolist())) == DRAWN
    assert set(first.tolist()) != set(different.tolist())


def test_a_draw_of_all_data_errs_by_what_it_leaves_out(network: Network) -> None:
    objective = network.objective(3000, 2000)
    dense, profile = objective.sample_losses(), MagnitudeProfile(objective.chosen)
    errors, misses = [], []
    whole = compared(objective, [objective]).at(90).mean
    for seed in range(60):
        part = objective.subset(500, seed)
        comparison = PairedDifferences([part], profile, part.sample_losses(), total=5000)
        difference = comparison.at(90)
        assert difference.complete
        assert difference.error == 0
        errors.append(comparison.error(difference))
        misses.append(difference.mean - whole)
    assert np.mean(errors) == pytest.approx(np.std(misses), rel=0.25)  # three standard errors of a deviation of 60
    complete = PairedDifferences([objective], profile, dense, total=5000)
    assert complete.error(complete.at(90)) == 0


# ------------------------------------------------------------------------------------------------- comparison


@pytest.mark.parametrize("sizes", [(), (3000, 1999, 1)])
@pytest.mark.parametrize("count", [0, 1, 60, 119, 120])
def test_all_data_give_the_mean_difference_of_plain_passes(
    network: Network, sizes: tuple[int, ...], count: int
) -> None:
    difference = compared(network.objective(*sizes)).at(count, surely=True)
    expected = network.losses(count) - network.losses(0)
    assert difference.mean == pytest.approx(float(expected.mean()), abs=1e-7)
    assert difference.spread == pytest.approx(float(expected.std()) / math.sqrt(SAMPLES), abs=1e-8)
    assert difference.error == 0.0
    assert difference.complete


@pytest.mark.parametrize("sizes", [(), (3000, 1999, 1)])
def test_a_draw_gives_the_mean_difference_of_its_samples_and_the_error_of_a_finite_population(
    network: Network, sizes: tuple[int, ...]
) -> None:
    comparison = compared(network.objective(*sizes))
    difference, picked = comparison.at(70), comparison.draws[0].picked
    assert picked is not None
    expected = (network.losses(70) - network.losses(0))[picked]
    assert difference.mean == pytest.approx(float(expected.mean()), abs=1e-7)
    assert difference.spread == pytest.approx(float(expected.std()) / math.sqrt(DRAWN), abs=1e-8)
    assert difference.error == pytest.approx(difference.spread * math.sqrt((SAMPLES - DRAWN) / SAMPLES))
    assert not difference.complete
    assert comparison.samples == DRAWN


def test_the_error_of_a_draw_is_the_scatter_of_draws(network: Network, rises: list[float]) -> None:
    objective = network.objective()
    differences = [compared(objective, draws_of(objective, seed)).at(90) for seed in range(100)]
    scatter = math.sqrt(sum((each.mean - rises[90]) ** 2 for each in differences) / 100)
    assert scatter == pytest.approx(differences[0].error, rel=0.25)  # of 100 draws: 7 % standard error


def test_before_all_data_were_passed_draws_decide_at_two_errors_and_the_largest_one_counts() -> None:
    x, y = random(40_000, 2).float(), torch.arange(40_000) % 2
    comparison = compared(Objective(nn.Linear(2, 2), [(x, y)]))
    first = comparison.at(2)
    assert comparison.at(2, allowed=first.mean + 2.1 * first.error) is first
    assert comparison.at(2, allowed=first.mean - 2.1 * first.error) is first
    assert comparison.samples == first.samples == 2048
    second = comparison.at(2, allowed=first.mean + 1.9 * first.error)
    assert second.samples == 8192
    assert comparison.at(2, allowed=second.mean) is second
    assert comparison.samples == 2048 + 8192


def test_after_all_data_were_passed_they_are_once_more_where_four_errors_decide_nothing(
    network: Network, rises: list[float]
) -> None:
    comparison = compared(network.objective())
    comparison.at(60, surely=True)
    first = comparison.at(90)
    assert comparison.at(90, allowed=first.mean + 4.1 * first.error) is first
    assert comparison.samples == SAMPLES + DRAWN
    second = comparison.at(90, allowed=first.mean + 3.9 * first.error)
    assert second.complete
    assert second.mean == pytest.approx(rises[90], abs=1e-7)
    assert comparison.samples == SAMPLES + DRAWN + SAMPLES
    assert comparison.at(90) is comparison.at(90, surely=True) is second
    assert comparison.samples == SAMPLES + DRAWN + SAMPLES
    assert comparison.counts == {60, 90}


def test_a_draw_that_was_passed_before_all_data_is_read_beside_them(network: Network, rises: list[float]) -> None:
    comparison = compared(network.objective())
    alone, far = comparison.at(95), comparison.at(30)
    comparison.at(96, surely=True)
    picked, passed = comparison.draws[0].picked, comparison.samples
    assert picked is not None
    beside = (network.losses(95) - network.losses(96))[picked]
    difference = comparison.at(95)
    assert difference.mean == pytest.approx(rises[96] + float(beside.mean()), abs=1e-7)
    assert difference.error == pytest.approx(
        float(beside.std()) / math.sqrt(DRAWN) * math.sqrt((SAMPLES - DRAWN) / SAMPLES), abs=1e-8
    )
    assert difference.error < alone.error
    assert difference.beside
    assert comparison.at(30).mean == far.mean  # alone it has the smaller error
    assert comparison.at(30).beside
    assert comparison.samples == passed


def test_of_several_networks_of_all_data_the_one_with_the_smallest_error_counts(network: Network) -> None:
    both, near = compared(network.objective()), compared(network.objective())
    for count in (96, 60):
        both.at(count, surely=True)
    near.at(96, surely=True)
    assert both.at(95) == near.at(95)


def test_asked_for_surely_no_draw_is_passed(network: Network) -> None:
    comparison = compared(network.objective())
    assert comparison.at(90, surely=True).complete
    assert comparison.samples == SAMPLES


def test_three_draws_grow_one_after_the_other() -> None:
    x, y = random(40_000, 2).float(), torch.arange(40_000) % 2
    model = nn.Linear(2, 2)
    comparison = compared(Objective(model, [(x, y)]))
    difference = comparison.at(2)
    comparison.at(2, allowed=difference.mean)
    sizes = [2048, 8192, 40_000]
    assert comparison.samples in (sum(sizes[:2]), sum(sizes))
    comparison.at(2, surely=True)
    assert comparison.samples == sum(sizes)


@pytest.mark.parametrize("penalty", [L1(1e-2), L2(1e-2)])
@pytest.mark.parametrize("surely", [False, True])
def test_the_rise_of_the_penalty_is_added(network: Network, penalty: L1 | L2, surely: bool) -> None:
    def value(model: nn.Module) -> float:
        parts = [parameter.detach().double() for parameter in model.parameters()]
        if isinstance(penalty, L1):
            return 1e-2 * float(sum(part.abs().sum() for part in parts))
        return 0.5e-2 * float(sum(part.square().sum() for part in parts))

    rise = value(network.pruned(100)) - value(network.model)
    alone = compared(network.objective()).at(100, surely=surely)
    with_penalty = compared(network.objective(penalty=penalty)).at(100, surely=surely)
    assert rise < -0.01
    assert with_penalty.mean == pytest.approx(alone.mean + rise, abs=1e-6)
    assert (with_penalty.error, with_penalty.spread) == pytest.approx((alone.error, alone.spread), abs=1e-9)


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_means_of_batches_count_by_their_samples_on_all_data_only(network: Network, rises: list[float]) -> None:
    sizes = (3000, 1500, 400, 100)
    comparison = compared(network.objective(*sizes, loss_fn=mean_loss))
    difference = comparison.at(90, allowed=rises[90] + 1)
    each = torch.stack([part.mean() for part in (network.losses(90) - network.losses(0)).split(sizes)])
    assert difference.mean == pytest.approx(rises[90], abs=1e-6)
    assert difference.spread == pytest.approx(float(each.std()) / 2, abs=1e-6)
    assert difference.error == 0.0
    assert difference.complete
    assert comparison.samples == SAMPLES


def test_batches_that_are_split_on_the_way_are_compared_with_parts_of_the_same_size(
    network: Network, rises: list[float]
) -> None:
    objective = network.objective(3000, 2000, loss_fn=mean_loss)
    comparison = compared(objective)
    for count in (60, 90):
        objective.shrink()  # as when memory runs out
        assert comparison.at(count).mean == pytest.approx(rises[count], abs=1e-6)
    assert len(comparison.values) > 4  # of the two batches at first


def test_a_single_batch_mean_has_no_known_spread(network: Network, rises: list[float]) -> None:
    difference = compared(network.objective(loss_fn=mean_loss)).at(90, allowed=rises[90])
    assert difference.spread == math.inf
    assert difference.error == 0.0
    assert difference.mean == pytest.approx(rises[90], abs=1e-6)


@pytest.mark.parametrize("count", [60, 115])
def test_of_a_metric_the_fall_is_compared(network: Network, count: int) -> None:
    objective = network.objective(loss_fn=accuracy)
    fall = network.hits(0) - network.hits(count)
    difference = compared(objective, sign=-1).at(count, surely=True)
    assert difference.mean == pytest.approx(float(fall.mean()), abs=1e-12)
    assert difference.spread == pytest.approx(float(fall.std()) / math.sqrt(SAMPLES), rel=1e-9)
    drawn = compared(objective, sign=-1)
    picked = drawn.draws[0].picked
    assert picked is not None
    assert drawn.at(count).mean == pytest.approx(float(fall[picked].mean()), abs=1e-12)


def broken(value: float, picky: Tensor) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """Return a loss that is not finite for some labels once 50 weights are removed."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        gone = sum(int((parameter == 0).sum()) for parameter in model.parameters()) >= 50
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1] % 3, reduction="none")
        return losses.where(~(torch.isin(batch[1], picky) & gone), value)

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_that_is_not_finite_is_an_infinite_loss(network: Network, value: float, sign: int) -> None:
    comparison = compared(network.objective(loss_fn=broken(value, torch.tensor([0]))), sign=sign)
    assert math.isfinite(comparison.at(49).mean)
    difference = comparison.at(50, allowed=1.0)
    assert (difference.mean, difference.error, difference.spread) == (math.inf, 0.0, 0.0)
    assert comparison.samples == 2 * DRAWN  # no larger draw can make it finite
    assert comparison.at(50, surely=True).mean == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_no_draw_holds_counts_at_the_end(network: Network, rises: list[float], value: float) -> None:
    """One loss of 5,000 is not finite from 50 weights on: draws without it pass there, all data do not."""
    objective = network.objective()
    picked = draws_of(objective)[0].picked
    assert picked is not None
    outside = next(number for number in range(SAMPLES) if number not in set(picked.tolist()))
    labels = network.y.clone()
    labels[outside] += 3
    special = Network(network.model, network.x, labels).objective(loss_fn=broken(value, labels[outside]))
    comparison = compared(special)
    assert comparison.at(60, allowed=1.0).mean == pytest.approx(rises[60], abs=0.02)
    assert comparison.at(60, surely=True).mean == math.inf
    assert all(rise <= 0.02 for rise in rises[:60])
    assert one_shot_limit(special, comparison.profile, 0.02) == 49 / 120


# ----------------------------------------------------------------------------------------------------- points


def test_points_hold_what_plain_passes_give(network: Network, rises: list[float]) -> None:
    objective = network.objective()
    metric = compared(network.objective(loss_fn=accuracy), sign=-1)
    bar = Bar(0.05)
    comparison = compared(objective)
    points = measured_points(comparison, metric, bar, 1 / 120)
    where = crossing(points, bar)
    counts = [round(point.sparsity * 120) for point in points]
    assert counts == sorted(set(counts))
    assert 0 not in counts
    for count, point in zip(counts, points, strict=True):
        assert point.sparsity == count / 120
        assert point.rise == pytest.approx(rises[count], abs=1e-6 + 5 * point.rise_error)
        fall = float((network.hits(0) - network.hits(count)).mean())
        assert point.drop == pytest.approx(fall, abs=0.02)
        assert point.drop_error is not None
    assert any(comparison.at(count).complete for count in counts)
    assert round(120 * where.high) == round(120 * where.low) + 1
    kept = 120 - round(where.low * 120)
    assert {120 - math.ceil(kept / math.sqrt(2)), 120 - math.ceil(kept / 2)} <= set(counts)


def test_the_metric_decides_where_the_bar_is_its_own(network: Network) -> None:
    falls = [float((network.hits(0) - network.hits(count)).mean()) for count in range(121)]
    metric = compared(network.objective(loss_fn=accuracy), sign=-1)
    bar = Bar(0.02, of_metric=True)
    where = crossing(measured_points(compared(network.objective()), metric, bar, 1 / 120), bar)
    low, high = first_crossing(lambda count, surely: falls[count] <= 0.02, 120)
    assert (where.low, where.high) == (low / 120, high / 120)


def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the number of parameters that are zero as the loss of every sample."""
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    return torch.full((len(batch[1]),), float(zeros))


def test_points_beyond_do_not_lie_within_a_wide_bracket(network: Network) -> None:
    """The grid keeps 8 weights and then 5; of 8 the root of a half is 6, measured on a draw alone."""
    comparison = compared(network.objective(loss_fn=counted))
    points = measured_points(comparison, None, Bar(113.5), 0.2)
    where = crossing(points, Bar(113.5))
    assert (round(120 * where.low), round(120 * where.high)) == (112, 115)
    assert not [count for count in comparison.counts if 112 < count < 115]
    assert 116 in comparison.counts
    assert comparison.at(112).complete
    assert comparison.at(115).beside


def test_zero_weights_count_as_removed_and_are_not_asked_for(network: Network, rises: list[float]) -> None:
    model = network.pruned(30)
    objective = Network(model, network.x, network.y).objective()
    comparison = compared(objective)
    assert comparison.profile.zeros == 30
    points = measured_points(comparison, None, Bar(0.05), 1 / 120)
    assert min(point.sparsity for point in points) > 0.25
    own = [rise - rises[30] for rise in rises]
    low, high = first_crossing(lambda count, surely: own[count] <= 0.05, 120, start=30)
    where = crossing(points, Bar(0.05), 0.25)
    assert (where.low, where.high) == (low / 120, high / 120)


def test_where_nothing_passes_the_dense_network_is_the_answer(network: Network) -> None:
    objective = network.objective(loss_fn=counted)
    assert one_shot_limit(objective, MagnitudeProfile(objective.chosen), 0.5) == 0.0
    assert one_shot_limit(objective, MagnitudeProfile(objective.chosen), 120.5) == 1.0


@pytest.mark.parametrize(
    "seeds", [range(first, first + 50) for first in range(0, 200, 50)], ids=lambda seeds: f"seeds from {seeds[0]}"
)
def test_draws_find_the_crossing_of_all_data(network: Network, rises: list[float], seeds: range) -> None:
    """The draw and what is allowed differ from seed to seed; the rises of all counts are the truth.

    Where the rise goes up and down within a step of the grid, more than one crossing is a right answer: the one that
    was found is the first of all that was asked for.
    """
    objective = network.objective()
    profile, dense = MagnitudeProfile(objective.chosen), objective.sample_losses()
    drawn = 0
    for seed in seeds:
        allowed = 0.002 * 250 ** float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        comparison = PairedDifferences(draws_of(objective, seed), profile, dense)
        where = crossing(measured_points(comparison, None, Bar(allowed), 1 / 120), Bar(allowed))
        low, high = round(120 * where.low), round(120 * where.high)
        assert high == low + 1
        assert rises[low] <= allowed < rises[high]
        assert all(
            rises[count] <= allowed for count in {120 - round(120 * 2 ** (-j / 2)) for j in range(14)} if count < low
        )
        assert all(rises[count] <= allowed for count in comparison.counts if count < low)
        drawn += sum(not comparison.at(count).complete for count in comparison.counts)
    assert drawn > 4 * len(seeds)


def test_a_trained_network_has_the_first_crossing_not_the_last(network: Network, rises: list[float]) -> None:
    """The rise of all data exceeds 0.025 at 63 to 67 weights, not at 68 to 72, and again from 73 on."""
    passing = [count for count in range(121) if rises[count] <= 0.025]
    assert passing == [*range(63), *range(68, 73)]
    objective = network.objective()
    bar = Bar(0.025)
    points = measured_points(compared(objective), None, bar, 1e-4)
    where = crossing(points, bar)
    assert (where.low, where.high) == (62 / 120, 63 / 120)
    assert one_shot_limit(objective, MagnitudeProfile(objective.chosen), 0.025) == 62 / 120


@pytest.mark.parametrize("width", [1e-4, 2.5e-4, 1e-3])
def test_a_rise_that_fails_at_85_percent_and_passes_again_further_on_is_at_its_limit_there(width: float) -> None:
    """Of 10,000 weights it fails at 85.2 to 85.6 %, passes at 85.8 to 85.9 %, and fails from there on."""
    model = nn.Linear(10_000, 1, bias=False)

    def rise(sparsity: float) -> float:
        return 2.0 if 0.852 <= sparsity <= 0.856 or sparsity > 0.859 else 0.5

    def loss(module: nn.Linear, batch: Tensor) -> Tensor:
        removed = int((module.weight == 0).sum())
        return torch.full((len(batch),), rise(removed / 10_000) if removed else 0.0)

    objective = Objective(model, [torch.zeros(3, 1)], loss)  # type: ignore[arg-type]
    bar, profile = Bar(1.0), MagnitudeProfile(objective.chosen)
    where = crossing(measured_points(compared(objective), None, bar, width), bar)
    assert 0.852 - width <= where.low < 0.852 <= where.high <= 0.852 + width
    assert one_shot_limit(objective, profile, 1.0, width) == where.low


# ------------------------------------------------------------------------------------------------------ limits


class Quadratic(nn.Module):
    """Weights whose loss is a quadratic form of their distance from what they were."""

    def __init__(self, matrix: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weights), 1, bias=False).double()
        self.register_buffer("centre", weights.clone())
        self.register_buffer("matrix", matrix)
        with torch.no_grad():
            self.layer.weight.copy_(weights[None])


def test_the_limit_of_a_quadratic_is_that_of_enumeration() -> None:
    weights, root = random(60), random(60, 60, seed=1) / 8
    matrix = root @ root.T

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        shift = module.layer.weight[0] - module.centre  # type: ignore[union-attr,index,operator]
        return (0.5 * shift @ module.matrix @ shift).expand(len(batch))  # type: ignore[operator]

    objective = Objective(Quadratic(matrix, weights), [torch.zeros(4, 1)], loss)
    order = weights.abs().argsort()
    rises = []
    for count in range(61):
        removed = torch.zeros(60, dtype=torch.float64)
        removed[order[:count]] = weights[order[:count]]
        rises.append(float(0.5 * removed @ matrix @ removed))
    epsilon = 0.7
    last = next(count for count in range(61) if rises[count] > epsilon) - 1
    assert all(rise > epsilon for rise in rises[last + 1 :])
    profile = MagnitudeProfile(objective.chosen)
    assert one_shot_limit(objective, profile, epsilon) == last / 60
    for point in measured_points(compared(objective), None, Bar(epsilon), 1e-4):
        assert point == Point(point.sparsity, pytest.approx(rises[round(60 * point.sparsity)], abs=1e-12))  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [None, L1(1e-3)])
def test_draws_give_the_same_limit_in_fewer_passes(penalty: L1 | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres, labels = 2 * torch.randn(10, 64), torch.arange(20_000) % 10
        inputs = centres[labels] + torch.randn(len(labels), 64)
        model = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(100):
            loss = nn.functional.cross_entropy(model(inputs[:1000]), labels[:1000])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    objective = Objective(model, [(inputs, labels)], penalty=penalty)
    bar = Bar(0.05)
    alone, helped = compared(objective, [objective]), compared(objective)
    points = measured_points(helped, None, bar, 1e-4)
    where = crossing(points, bar)
    assert where == crossing(measured_points(alone, None, bar, 1e-4), bar)
    assert helped.samples < 0.8 * alone.samples
    for point in points:
        weights = helped.profile.vector - helped.profile.removed(point.sparsity)
        rise = objective.value(weights) - objective.value()
        assert point.rise == pytest.approx(rise, abs=1e-6 + 5 * point.rise_error)


def test_mean_and_error_by_hand() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2, 1, 1]))
    assert mean == pytest.approx((2 * 1 + 2 + 6) / 4)
    assert error == pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2 / 3))
    assert mean_and_error(torch.tensor([0.5]), torch.tensor([7])) == (0.5, math.inf)


def test_where_all_data_are_drawn_they_are_passed_up_to_the_first_points_without_doubt(network: Network) -> None:
    objective, allowed = network.objective(), 0.03
    comparison = PairedDifferences(
        draws_of(objective), MagnitudeProfile(objective.chosen), objective.sample_losses(), total=40_000
    )
    where = crossing(measured_points(comparison, None, Bar(allowed), 1 / 120), Bar(allowed))
    counts, passed = sorted(comparison.counts), 0
    for side in ([c for c in reversed(counts) if c <= 120 * where.low], [c for c in counts if c > 120 * where.low]):
        for difference in map(comparison.at, side):
            if abs(difference.mean - allowed) > 4 * comparison.error(difference):
                break
            assert difference.complete
            passed += 1
    assert passed > 2
