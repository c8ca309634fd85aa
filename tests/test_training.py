from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from estimators import L1, L2, UserError
from estimators.user_code import autocast_enabled
from pruning_limits import MagnitudeProfile
from validation import training
from validation.data import ImageData
from validation.masks import Masks, prunable
from validation.models import build_model
from validation.pruners import Problem
from validation.tables.storage import run_folder, settings_hash
from validation.training import (
    Course,
    Network,
    Recipe,
    accuracy,
    apply_masks,
    fixed_randomness,
    hold_masks,
    initial_network,
    train,
    trained_network,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    """150 training images: three batches of 64, the last one ragged."""
    return dataclasses.replace(digits, train_x=digits.train_x[:150], train_y=digits.train_y[:150])


def dropout_network() -> nn.Module:
    """A small network with everything that carries state or draws numbers: batch norm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def snapshot(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def masks_of(model: nn.Module, sparsity: float = 0.6) -> Masks:
    return MagnitudeProfile(prunable(model)).masks(sparsity)


class Killed(Exception):  # noqa: N818
    """Stands for a process that is stopped in the middle."""


def kill_at(step: int) -> Callable[[int, nn.Module], None]:
    def check(done: int, _: nn.Module) -> None:
        if done == step:
            raise Killed

    return check


# ------------------------------------------------------------------------------------------------- learning rate


def rates(recipe: Recipe, per_epoch: int = 10) -> list[float]:
    return [recipe.learning_rate(step, per_epoch) for step in range(recipe.epochs * per_epoch)]


def test_a_constant_rate_is_constant() -> None:
    assert set(rates(Recipe(4, 0.3, schedule="constant"))) == {0.3}


def test_cosine_advances_once_per_epoch_over_all_epochs() -> None:
    learning_rates = rates(Recipe(8, 0.4))
    assert learning_rates == [pytest.approx(0.2 * (1 + math.cos(math.pi * (step // 10) / 8))) for step in range(80)]
    assert learning_rates[0] == 0.4
    assert learning_rates[40] == pytest.approx(0.2)
    assert 0 < learning_rates[-1] < 0.05


def test_milestones_count_epochs() -> None:
    learning_rates = rates(Recipe(6, 1.0, schedule="multistep", milestones=(2, 5), gamma=0.1))
    assert learning_rates[:20] == [1.0] * 20
    assert learning_rates[20:50] == [pytest.approx(0.1)] * 30
    assert learning_rates[50:] == [pytest.approx(0.01)] * 10


@pytest.mark.parametrize("schedule", ["constant", "cosine", "multistep"])
def test_warm_up_rises_linearly_step_by_step(schedule: str) -> None:
    plain = Recipe(6, 0.5, schedule=schedule, milestones=(4,))
    warm = dataclasses.replace(plain, warmup=2)
    factors = [a / b for a, b in zip(rates(warm), rates(plain), strict=True)]
    assert factors[:20] == [pytest.approx((step + 1) / 20) for step in range(20)]
    assert factors[20:] == [pytest.approx(1.0)] * 40


def test_the_schedule_reaches_the_optimizer(few: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    class Noted(torch.optim.SGD):
        def step(self, *arguments: Any, **options: Any) -> Any:
            used.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(torch.optim, "SGD", Noted)
    recipe = Recipe(4, 0.1, batch_size=64, warmup=1)
    train(linear(), few, recipe, 0)
    assert used == rates(recipe, 3)


# ------------------------------------------------------------------------------------------------- precision


def test_mixed_precision_rounds_the_layers_and_keeps_weights_in_float32(few: ImageData) -> None:
    logits: dict[str, torch.dtype] = {}
    ends: dict[str, dict[str, Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        model = linear()
        note = model.register_forward_hook(lambda *call, name=precision: logits.__setitem__(name, call[2].dtype))
        train(model, few, Recipe(2, 0.1, batch_size=64, precision=precision), 0)
        note.remove()
        ends[precision] = dict(model.state_dict())
    assert logits == {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for name, weights in ends["float32"].items():
        rounded = ends["bfloat16"][name]
        assert rounded.dtype == torch.float32
        assert not torch.equal(weights, rounded)
        torch.testing.assert_close(weights, rounded, rtol=0.05, atol=0.01)
    assert not autocast_enabled("cpu")


def test_the_precision_names_a_network_where_it_is_not_float32() -> None:
    assert "precision" not in Recipe(1, 0.1).settings()
    assert Recipe(1, 0.1, precision="bfloat16").settings()["precision"] == "bfloat16"
    with pytest.raises(UserError, match=r"^precision: expected one of float32, bfloat16, got 'half'$"):
        Recipe(1, 0.1, precision="half")


# ------------------------------------------------------------------------------------------------- initial weights


def test_the_gain_multiplies_initial_weights_and_nothing_else(digits: ImageData) -> None:
    plain, larger = Recipe(1, 0.1), Recipe(1, 0.1, gain=1.5)
    models = [initial_network("small-cnn", digits, recipe, 3) for recipe in (plain, larger)]
    names = set(prunable(models[0]))
    for name, before in models[0].named_parameters():
        after = dict(models[1].named_parameters())[name]
        assert torch.equal(after, 1.5 * before if name in names else before)
    problem = Problem("small-cnn", digits, larger, 3, models[0], 1)
    assert same(problem.fresh().state_dict(), models[1].state_dict())
    assert "gain" not in plain.settings()
    assert larger.settings()["gain"] == 1.5


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_is_no_positive_number_is_refused(gain: float) -> None:
    with pytest.raises(UserError, match=r"^gain: expected a positive number \(factor of the initial weights\), got "):
        Recipe(1, 0.1, gain=gain)


# ------------------------------------------------------------------------------------------------- resuming


FULL = Recipe(3, 0.05, l2=1e-3, batch_size=64, augment=True, warmup=1, nesterov=True)


@pytest.mark.parametrize("step", [1, 3, 5, 6, 7, 8])
def test_a_run_that_was_stopped_continues_bit_for_bit(few: ImageData, tmp_path: Path, step: int) -> None:
    whole = dropout_network()
    train(whole, few, FULL, seed=4)
    model = dropout_network()
    with pytest.raises(Killed):
        train(model, few, FULL, seed=4, course=Course(state=tmp_path / "state.pt", on_step=kill_at(step)))
    again = dropout_network()
    steps: list[int] = []
    train(
        again, few, FULL, seed=4, course=Course(state=tmp_path / "state.pt", on_step=lambda done, _: steps.append(done))
    )
    assert steps == list(range(3 * ((step - 1) // 3) + 1, 10))
    assert same(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("option", [{}, {"optimizer": "adamw", "decay": 0.1}])
def test_a_run_that_was_stopped_with_masks_continues_bit_for_bit(
    few: ImageData, tmp_path: Path, option: dict[str, Any]
) -> None:
    recipe = Recipe(3, 0.1, l1=1e-3, batch_size=64, **option)
    masks = masks_of(dropout_network())
    models = [dropout_network() for _ in range(3)]
    train(models[0], few, recipe, 0, masks=masks)
    with pytest.raises(Killed):
        train(models[1], few, recipe, 0, masks=masks, course=Course(state=tmp_path / "state.pt", on_step=kill_at(5)))
    train(models[2], few, recipe, 0, masks=masks, course=Course(state=tmp_path / "state.pt"))
    assert same(models[0].state_dict(), models[2].state_dict())


def test_a_finished_state_is_not_trained_again(few: ImageData, tmp_path: Path) -> None:
    recipe = Recipe(2, 0.1, batch_size=64)
    model, again = linear(), linear()
    train(model, few, recipe, 0, course=Course(state=tmp_path / "state.pt"))
    train(again, few, recipe, 0, course=Course(state=tmp_path / "state.pt", on_step=kill_at(-1)))
    assert same(model.state_dict(), again.state_dict())


def test_seconds_before_an_interruption_count(few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    recipe = Recipe(2, 0.1, batch_size=64)
    with pytest.raises(Killed):
        train(linear(), few, recipe, 0, course=Course(state=tmp_path / "state.pt", on_step=kill_at(4)))
    first = training.load_tensors(tmp_path / "state.pt")["seconds"]
    assert first > 0
    assert train(linear(), few, recipe, 0, course=Course(state=tmp_path / "state.pt")) > first


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_starting_from_the_weights_of_a_step_sees_what_a_run_from_zero_saw(few: ImageData, step: int) -> None:
    recipe = dataclasses.replace(FULL, momentum=0.0, nesterov=False)
    states: dict[int, State] = {}
    whole = dropout_network()
    train(whole, few, recipe, 2, course=Course(on_step=lambda done, model: states.update({done: snapshot(model)})))
    model = dropout_network()
    model.load_state_dict(states[step])
    train(model, few, recipe, 2, course=Course(first=step))
    assert same(whole.state_dict(), model.state_dict())


def test_momentum_starts_at_zero(few: ImageData) -> None:
    recipe = Recipe(1, 0.1, momentum=0.9, batch_size=64, schedule="constant")
    weights = []
    for momentum in (0.9, 0.0):
        model = linear()
        train(model, few, dataclasses.replace(recipe, momentum=momentum), 0, course=Course(first=1, last=2))
        weights.append(snapshot(model))
    assert same(*weights)


def test_the_last_step_may_lie_inside_an_epoch(few: ImageData) -> None:
    recipe = Recipe(3, 0.1, batch_size=64)
    states: dict[int, State] = {}
    train(linear(), few, recipe, 0, course=Course(on_step=lambda done, model: states.update({done: snapshot(model)})))
    assert sorted(states) == list(range(1, 10))
    for last in (0, 4, 6):
        model = linear()
        train(model, few, recipe, 0, course=Course(last=last))
        assert same(model.state_dict(), states[last] if last else linear().state_dict())


def test_training_depends_on_its_seed_and_leaves_the_global_random_state_alone(few: ImageData) -> None:
    results = []
    for number, seed in enumerate((0, 0, 1)):
        model = dropout_network()
        torch.manual_seed(number)
        before = torch.random.get_rng_state()
        train(model, few, FULL, seed, course=Course(last=2))
        assert torch.equal(before, torch.random.get_rng_state())
        assert model.training
        results.append(snapshot(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_dropout_is_drawn_from_seed_and_step() -> None:
    def draw(seed: int, step: int) -> list[float]:
        with fixed_randomness(seed, step):
            return torch.rand(4).tolist()

    assert draw(1, 5) == draw(1, 5)
    assert len({tuple(draw(seed, step)) for seed in range(3) for step in range(3)}) == 9


# ------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize(("option", "penalty"), [({}, None), ({"l1": 0.01}, L1(0.01)), ({"l2": 0.1}, L2(0.1))])
def test_a_step_follows_the_gradient_of_cross_entropy_plus_penalty(
    few: ImageData, option: dict[str, float], penalty: L1 | L2 | None
) -> None:
    recipe = Recipe(1, 0.5, momentum=0.0, batch_size=64, **option)
    assert recipe.penalty == penalty
    expected = linear()
    x, y = next(few.batches("train", 64).shuffled(3, 0))
    loss = nn.functional.cross_entropy(expected(x), y)
    if penalty is not None:
        loss = loss + penalty.value(expected.parameters())
    gradients = torch.autograd.grad(loss, list(expected.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
    model = linear()
    train(model, few, recipe, 3, course=Course(last=1))
    for parameter, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted)


def test_the_penalty_reaches_parameters_that_the_loss_does_not(few: ImageData) -> None:
    model = linear()
    model.register_parameter("idle", nn.Parameter(torch.tensor([1.0, -2.0, 0.0])))
    train(model, few, Recipe(1, 0.5, momentum=0.0, l1=0.1, batch_size=64), 0, course=Course(last=1))
    torch.testing.assert_close(model.get_parameter("idle").detach(), torch.tensor([0.95, -1.95, 0.0]))


@pytest.mark.parametrize("option", [{}, {"decay": 0.3}, {"decay": 0.3, "l1": 0.01}, {"l2": 0.1}])
def test_adamw_decays_weights_apart_from_the_gradient(few: ImageData, option: dict[str, float]) -> None:
    """Loshchilov and Hutter, algorithm 2, with a rate that warms up and falls."""
    recipe = Recipe(2, 0.01, batch_size=64, optimizer="adamw", warmup=1, **option)
    expected = linear()
    weights = list(expected.parameters())
    firsts, seconds = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(6):
        epoch, number = divmod(step, 3)
        x, y = list(few.batches("train", 64).shuffled(3, epoch))[number]
        loss = nn.functional.cross_entropy(expected(x), y)
        if recipe.penalty is not None:
            loss = loss + recipe.penalty.value(weights)
        rate = 0.01 * (step + 1) / 3 if step < 3 else 0.005
        for weight, gradient, first, second in zip(
            weights, torch.autograd.grad(loss, weights), firsts, seconds, strict=True
        ):
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            slope = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            with torch.no_grad():
                weight.sub_(rate * (slope + recipe.decay * weight))
    model = linear()
    train(model, few, recipe, 3)
    for parameter, wanted in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter, wanted)


# ------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "option",
    [{}, {"l1": 1e-2}, {"l2": 1e-2}, {"l2": 1e-2, "nesterov": True}, {"optimizer": "adamw", "decay": 0.1}],
)
def test_removed_weights_are_zero_after_every_step(few: ImageData, option: dict[str, Any]) -> None:
    model = dropout_network()
    masks = masks_of(model)
    steps = 0

    def check(_: int, trained: nn.Module) -> None:
        nonlocal steps
        steps += 1
        for name, mask in masks.items():
            assert not trained.get_parameter(name)[~mask].any()

    train(model, few, Recipe(2, 0.2, batch_size=64, **option), 0, masks=masks, course=Course(on_step=check))
    assert steps == 6
    assert all(model.get_parameter(name)[mask].all() for name, mask in masks.items())
    assert model.get_parameter("5.bias").any()


def test_momentum_does_not_revive_removed_weights() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model(torch.ones(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    masks = {"1.weight": torch.zeros(10, 64, dtype=torch.bool)}
    hold_masks(model, optimizer, masks)
    assert not model.get_parameter("1.weight").any()
    optimizer.zero_grad()
    model(torch.zeros(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert optimizer.state[model.get_parameter("1.weight")]["momentum_buffer"].any()
    assert not model.get_parameter("1.weight").any()


def test_masks_hold_even_without_a_step(few: ImageData) -> None:
    model = linear()
    masks = masks_of(model, 0.5)
    train(model, few, Recipe(1, 0.1), 0, masks=masks, course=Course(last=0))
    assert not model.get_parameter("1.weight")[~masks["1.weight"]].any()


def test_apply_masks_touches_named_weights_only() -> None:
    model = linear()
    before = snapshot(model)
    mask = torch.rand(10, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    apply_masks(model, {"1.weight": mask})
    assert torch.equal(model.get_parameter("1.weight"), before["1.weight"] * mask)
    assert torch.equal(model.get_parameter("1.bias"), before["1.bias"])


# ------------------------------------------------------------------------------------------------- refusals


def test_a_loss_that_is_no_number_is_refused_in_one_line(few: ImageData, tmp_path: Path) -> None:
    model = build_model("fc5-mini", few.shape, few.classes)
    with pytest.raises(UserError, match=r"^training: the loss is (nan|inf) at step \d+; lower lr=1e\+20") as caught:
        train(model, few, Recipe(3, 1e20, batch_size=64), 0, course=Course(state=tmp_path / "state.pt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "state.pt").exists()


def test_two_penalties_are_refused() -> None:
    with pytest.raises(UserError, match="l1 and l2"):
        Recipe(1, 0.1, l1=1e-3, l2=1e-3)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"constant, cosine, multistep, got 'linear'"):
        Recipe(1, 0.1, schedule="linear")


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"^optimizer: expected one of sgd, adamw, got 'adam'$"):
        Recipe(1, 0.1, optimizer="adam")


def test_decoupled_decay_is_refused_where_the_optimizer_has_none() -> None:
    with pytest.raises(UserError, match=r"^recipe: decay is the decoupled weight decay of adamw; take l2 with sgd$"):
        Recipe(1, 0.1, decay=0.01)
    assert Recipe(1, 0.1, optimizer="adamw", decay=0.01, l1=1e-4).penalty == L1(1e-4)


# ------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("mode", [True, False])
def test_accuracy_counts_correct_images_in_evaluation_mode(digits: ImageData, mode: bool) -> None:
    model = dropout_network().train(mode)
    before = snapshot(model)
    share = accuracy(model, digits)
    assert model.training is mode
    assert same(before, model.state_dict())
    ((x, y),) = digits.batches("test", 397)
    with torch.no_grad():
        correct = int((model.eval()(x).argmax(1) == y).sum())
    assert share == correct / 397
    assert 0 <= accuracy(model, digits, "train") <= 1


# ------------------------------------------------------------------------------------------------- trained networks


NETWORK = Network("fc5-mini", "digits", Recipe(2, 0.05, batch_size=64), 0)


def test_a_network_is_trained_once(few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_network(NETWORK, few, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["settings.json", "training.json", "weights.pt"]
    assert not model.training
    direct = build_model("fc5-mini", few.shape, few.classes, seed=0)
    train(direct, few, NETWORK.recipe, seed=0)
    assert same(model.state_dict(), direct.state_dict())
    monkeypatch.delattr(training, "train")
    assert same(model.state_dict(), trained_network(NETWORK, few, tmp_path).state_dict())


def test_a_network_whose_training_was_stopped_continues(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained_network(NETWORK, few, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            training, "train", lambda *a, course: train(*a, course=dataclasses.replace(course, on_step=kill_at(5)))
        )
        with pytest.raises(Killed):
            trained_network(NETWORK, few, tmp_path / "stopped")
    (folder,) = (tmp_path / "stopped").iterdir()
    assert (folder / "state.pt").exists()
    steps: list[int] = []
    with monkeypatch.context() as patch:
        note = Course(state=folder / "state.pt", on_step=lambda done, _: steps.append(done))
        patch.setattr(training, "train", lambda *a, course: train(*a, course=note))
        again = trained_network(NETWORK, few, tmp_path / "stopped")
    assert steps == [4, 5, 6]
    assert same(whole.state_dict(), again.state_dict())
    assert not (folder / "state.pt").exists()


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(NETWORK, seed=1),
        dataclasses.replace(NETWORK, model="small-cnn"),
        dataclasses.replace(NETWORK, dataset="mnist"),
        *(
            dataclasses.replace(NETWORK, recipe=dataclasses.replace(NETWORK.recipe, **change))
            for change in (
                {"epochs": 3},
                {"lr": 0.06},
                {"momentum": 0.8},
                {"l1": 1e-4},
                {"l2": 1e-4},
                {"batch_size": 65},
                {"schedule": "constant"},
                {"milestones": (1,)},
                {"gamma": 0.2},
                {"warmup": 1},
                {"nesterov": True},
                {"augment": True},
                {"optimizer": "adamw"},
                {"optimizer": "adamw", "decay": 0.1},
            )
        ),
    ],
)
def test_another_network_or_recipe_gets_another_folder(tmp_path: Path, other: Network) -> None:
    assert run_folder(tmp_path, "network", other.settings()) != run_folder(tmp_path, "network", NETWORK.settings())


def test_equal_recipes_share_a_folder_however_they_were_written(tmp_path: Path) -> None:
    listed = dataclasses.replace(NETWORK, recipe=Recipe(2, 0.05, milestones=[1, 2]))  # type: ignore[arg-type]
    tupled = dataclasses.replace(NETWORK, recipe=Recipe(2, 0.05, milestones=(1, 2)))
    assert listed == tupled
    assert run_folder(tmp_path, "network", listed.settings()) == run_folder(tmp_path, "network", tupled.settings())


STEPS = Recipe(6, 0.2, momentum=0.5, batch_size=64, schedule="multistep", milestones=(2, 4), gamma=0.3, nesterov=True)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (Network("fc5", "cifar10", Recipe(40, 0.05, l1=5e-5, warmup=1), 0), "8a24ad306c50"),
        (Network("resnet20", "cifar10", Recipe(20, 0.1, l2=1e-4, warmup=1, augment=True), 3), "80cf8b99a34d"),
        (Network("small-cnn", "digits", Recipe(60, 0.05, warmup=1), 0), "0acad5376fb2"),
        (Network("fc3-tiny", "digits", STEPS, 1), "9921bb4133cb"),
    ],
)
def test_run_folders_keep_their_names(network: Network, name: str) -> None:
    """Trained networks lie on disk under these names; a change here makes all of them train again."""
    assert settings_hash(network.settings()) == name


def test_the_settings_of_an_optimizer_are_those_that_it_has() -> None:
    plain, other = Recipe(1, 0.1).settings(), Recipe(1, 0.1, optimizer="adamw").settings()
    assert not {"optimizer", "decay"} & set(plain)
    assert other == plain | {"optimizer": "adamw", "decay": 0.0}
