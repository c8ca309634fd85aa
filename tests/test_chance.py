from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from helpers import BatchNormNet, random, same, seeded, snapshot
from torch import Tensor, nn

from estimators import L2, Objective, UserError
from pruning_limits.chance import gain_over_constant, gain_over_strangers
from pruning_limits.parts import Dense

LAYERS = (nn.Linear, nn.Conv2d)


def square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def directly(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor] = entropy
) -> tuple[float, float]:
    """Compare with a copy whose layers hold zeros, of which it is checked that its outputs are constant."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        dense = loss(model, (x, y)).double()
        for module in model.modules():
            if isinstance(module, LAYERS):
                module.weight.zero_()
        outputs = model(x)
        assert torch.equal(outputs, outputs[:1].expand_as(outputs))
        gains = loss(model, (x, y)).double() - dense
    return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))


def at_chance(gain: tuple[float, float] | None) -> bool:
    """Tell what a prediction says of a network without a metric."""
    assert gain is not None
    return Dense(0.0, 0.0, 1, constant_gain=gain[0], constant_error=gain[1]).at_chance


def mlp(inputs: int = 20, hidden: int = 64, outputs: int = 10) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def trained(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor] = entropy) -> nn.Module:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        loss(model, (x, y)).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("sizes", [(12,), (5, 6, 1)])
@pytest.mark.parametrize("parameters", [None, "head.weight", "*"])
def test_gain_and_error_are_those_of_a_copy_with_zeros(sizes: tuple[int, ...], parameters: str | None) -> None:
    model, x, y = seeded(BatchNormNet), random(12, 1, 4, 4), torch.arange(12) % 3
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    before = snapshot(model)
    gain = gain_over_constant(Objective(model, batches, penalty=L2(0.5), parameters=parameters))
    assert same(snapshot(model), before)
    assert gain == pytest.approx(directly(model, x, y), rel=1e-9)


def test_gain_of_a_regression_is_that_of_a_copy_with_zeros() -> None:
    model, x, y = seeded(lambda: mlp(4, 5, 3)), random(30, 4), random(30, 3, seed=1)
    gain = gain_over_constant(Objective(model, [(x, y)], square))
    assert gain == pytest.approx(directly(model, x, y, square), rel=1e-9)


def test_of_a_draw_the_drawn_samples_are_compared() -> None:
    model, x, y = seeded(lambda: mlp(4, 5, 3)), random(100, 4), torch.arange(100) % 3
    part = Objective(model, [(x[:60], y[:60]), (x[60:], y[60:])]).subset(40, seed=3)
    assert part.picked is not None
    assert gain_over_constant(part) == pytest.approx(directly(model, x[part.picked], y[part.picked]), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_an_untrained_network_is_at_chance(seed: int) -> None:
    model, x, y = seeded(mlp, seed), random(512, 20, seed=seed), torch.arange(512) % 10
    assert at_chance(gain_over_constant(Objective(model, [(x, y)])))


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_resnet_18_is_at_chance(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torchvision.models.resnet18(num_classes=10)
    x, y = random(100, 3, 16, 16, seed=seed).float(), torch.arange(100) % 10
    gain = gain_over_constant(Objective(model, [(x, y)]))
    assert at_chance(gain)
    assert gain == pytest.approx(directly(model, x, y), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_trained_network_is_not_at_chance(seed: int) -> None:
    centres, y = random(10, 20, seed=seed), torch.arange(512) % 10
    x = centres[y] + 0.5 * random(512, 20, seed=seed + 100)
    model = trained(seeded(mlp, seed), x, y)
    assert not at_chance(gain_over_constant(Objective(model, [(x, y)])))


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_regression_is_at_chance_before_training_only(seed: int, fitted: bool) -> None:
    x = random(512, 20, seed=seed)
    y = (x @ random(20, 1, seed=50)).tanh() + 0.3 * random(512, 1, seed=seed + 100)
    y -= y.mean()
    model = seeded(lambda: mlp(outputs=1), seed)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(5)  # outputs that vary as much as the targets
    if fitted:
        trained(model, x, y, square)
    assert at_chance(gain_over_constant(Objective(model, [(x, y)], square))) is not fitted


@pytest.mark.parametrize("fitted", [False, True])
def test_a_head_on_frozen_random_features_counts_by_what_it_has_learnt(fitted: bool) -> None:
    centres, y = random(10, 20), torch.arange(512) % 10
    x = centres[y] + 0.5 * random(512, 20, seed=1)
    model = seeded(mlp)
    model.get_parameter("0.weight").requires_grad_(False)
    if fitted:
        trained(model, x, y)
    gain = gain_over_constant(Objective(model, [(x, y)], parameters="2.weight"))
    assert at_chance(gain) is not fitted
    assert gain == pytest.approx(directly(model, x, y), rel=1e-9)


def test_a_network_of_constant_outputs_gains_nothing() -> None:
    """Where all labels are one class, the bias of the last layer is all that a network needs."""
    model = seeded(mlp)
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
        model.get_parameter("2.bias")[3] = 20.0
    x, y = random(50, 20), torch.full((50,), 3)
    assert gain_over_constant(Objective(model, [(x, y)])) == (0.0, 0.0)
    assert at_chance((0.0, 0.0))


def test_a_model_without_such_layers_is_compared_without_its_chosen_weights() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(5 * torch.eye(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scores[x]

    x = torch.arange(30) % 3
    with pytest.raises(UserError, match="no convolution or linear layers"):
        Objective(Table(), [(x, x)])
    gain = gain_over_constant(Objective(Table(), [(x, x)], parameters="scores"))
    expected = math.log(3) - math.log(1 + 2 * math.exp(-5))
    assert gain == (pytest.approx(expected, rel=1e-12), pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_constant_outputs_without_a_finite_loss_tell_nothing(value: float) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        losses = entropy(model, batch)
        return losses if bool(model.get_submodule("0").weight.any()) else torch.full_like(losses, value)

    objective = Objective(seeded(mlp), [(random(8, 20), torch.arange(8))], loss)
    assert gain_over_constant(objective) is None


def test_a_single_loss_tells_nothing() -> None:
    objective = Objective(seeded(mlp), [(random(1, 20), torch.zeros(1, dtype=torch.long))])
    assert gain_over_constant(objective) is None


def test_means_of_batches_count_by_their_samples() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return entropy(model, batch).mean()

    model, x, y = seeded(mlp), random(40, 20), torch.arange(40) % 10
    gain = gain_over_constant(Objective(model, list(zip(x.split((30, 8, 2)), y.split((30, 8, 2)), strict=True)), loss))
    assert gain is not None
    assert gain[0] == pytest.approx(directly(model, x, y)[0], rel=1e-9)


# ------------------------------------------------------------------------------------------------------ strangers


def worst(objective: Objective) -> tuple[float, float]:
    """Return the smaller gain, as a prediction does."""
    return min(gain for gain in (gain_over_constant(objective), gain_over_strangers(objective)) if gain is not None)


def imbalanced(seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.zeros(512, dtype=torch.long)
    labels[::10] = 1 + torch.arange(len(labels[::10])) % 9
    return random(512, 20, seed=seed), labels


def test_few_untrained_networks_pass_for_trained_ones() -> None:
    told = []
    for seed in range(60):
        x, y = imbalanced(seed)
        told.append(at_chance(worst(Objective(seeded(mlp, seed), [(x, y)]))))
        shifted = 5 + random(512, 1, seed=seed + 7)
        told.append(at_chance(worst(Objective(seeded(lambda: mlp(outputs=1), seed), [(x, shifted)], square))))
    assert sum(told) >= 0.93 * len(told)


@pytest.mark.parametrize("seed", range(5))
def test_strangers_tell_a_trained_network_also_where_data_are_sorted(seed: int) -> None:
    centres, y = random(10, 20, seed=seed), (torch.arange(512) % 10).sort().values
    x = centres[y] + 0.5 * random(512, 20, seed=seed + 100)
    model = trained(seeded(mlp, seed), x, y)
    batches = list(zip(x.split(50), y.split(50), strict=True))
    assert not at_chance(worst(Objective(model, batches)))
    gain, error = gain_over_strangers(Objective(model, batches)) or (0.0, 1.0)
    assert gain > 10 * error


def test_strangers_are_not_asked_where_they_say_nothing() -> None:
    model, x = seeded(lambda: mlp(4, 5, 3)), random(40, 4)
    alone = Objective(model, [(x, torch.zeros(40))], lambda network, batch: network(batch[0]).square().sum(1))
    assert gain_over_strangers(alone) is None
    named = Objective(model, [{"x": x}], lambda network, batch: network(batch["x"]).square().sum(1))
    assert gain_over_strangers(named) is None
    single = Objective(model, [(x[:1], torch.zeros(1).long())])
    assert gain_over_strangers(single) is None


def test_batches_of_different_shapes_are_mixed_within_themselves() -> None:
    model = seeded(lambda: nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(8, 3)))
    batches = [(random(20, 2, length, seed=length), torch.arange(20) % 3) for length in (6, 8)]
    gain = gain_over_strangers(Objective(model, batches))
    assert gain is not None
    assert abs(gain[0]) < 5 * gain[1]
