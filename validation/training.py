"""Training in which recipe, seed and step number determine every step, so that it can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from estimators import L1, L2
from estimators.errors import UserError
from validation.data import ImageData
from validation.devices import described
from validation.masks import Masks, prunable
from validation.models import build_model
from validation.tables.storage import load_tensors, run_folder, save_tensors, write_json

CPU = torch.device("cpu")
SCHEDULES = ("constant", "cosine", "multistep")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: Passes over the training data.
        lr: Peak learning rate.
        momentum: Momentum of SGD.
        l1: Coefficient of the L1 penalty over all parameters.
        l2: Coefficient of the L2 penalty over all parameters (weight decay).
        batch_size: Samples per step.
        schedule: ``"constant"``, ``"cosine"`` or ``"multistep"``, advanced once per epoch.
        milestones: Epochs at which ``"multistep"`` multiplies the rate by ``gamma``.
        gamma: Factor of ``"multistep"``.
        warmup: Epochs over which the rate rises linearly, step by step.
        nesterov: Nesterov momentum.
        augment: Random shifts of up to four pixels and flips.
        optimizer: ``"sgd"`` or ``"adamw"``, which has no use for ``momentum`` and ``nesterov``.
        decay: Decoupled weight decay of ``"adamw"``.
        precision: ``"float32"``, or ``"bfloat16"`` for mixed precision: layers compute in bfloat16, while weights,
            optimizer and everything that is measured afterwards stay in float32.
        gain: Factor of the initial weights of convolution and linear layers, positive.
    """

    epochs: int
    lr: float
    momentum: float = 0.9
    l1: float = 0.0
    l2: float = 0.0
    batch_size: int = 128
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: int = 0
    nesterov: bool = False
    augment: bool = False
    optimizer: str = "sgd"
    decay: float = 0.0
    precision: str = "float32"
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 < self.gain < math.inf:
            raise UserError(f"gain: expected a positive number (factor of the initial weights), got {self.gain!r}")
        if self.decay and self.optimizer != "adamw":
            raise UserError("recipe: decay is the decoupled weight decay of adamw; take l2 with sgd")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.l1 and self.l2:
            raise UserError("recipe: l1 and l2 cannot both be set; choose one penalty")
        object.__setattr__(self, "milestones", tuple(self.milestones))

    @property
    def penalty(self) -> L1 | L2 | None:
        """The penalty that belongs to the training objective."""
        if self.l1:
            return L1(self.l1)
        return L2(self.l2) if self.l2 else None

    def settings(self) -> dict[str, Any]:
        """Plain values for hashing; optimizer, precision and gain only where they are not SGD, float32 and 1."""
        values = asdict(self) | {"milestones": list(self.milestones)}
        if self.optimizer == "sgd":
            del values["optimizer"], values["decay"]
        if self.precision == "float32":
            del values["precision"]
        if self.gain == 1:
            del values["gain"]
        return values

    def arithmetic(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context of forward passes on a device; it changes nothing for float32."""
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def optimizing(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of some parameters."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=self.decay)
        return torch.optim.SGD(parameters, self.lr, self.momentum, nesterov=self.nesterov)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step counted from 0."""
        epoch = step // steps_per_epoch
        rate = self.lr
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        elif self.schedule == "multistep":
            rate *= self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        warm_steps = self.warmup * steps_per_epoch
        return rate * min(1.0, (step + 1) / warm_steps) if warm_steps else rate


@dataclass(frozen=True)
class Course:
    """Which steps of a training are made, and what happens on the way.

    Args:
        first: Step to start from.
        last: Step to stop before; None stands for the end of the last epoch.
        state: File for the state after every epoch; training resumes from it.
        on_step: Called after each step with the number of steps done and the model.
        progress: Label of a progress bar over steps; None for none.
    """

    first: int = 0
    last: int | None = None
    state: Path | None = None
    on_step: Callable[[int, nn.Module], None] | None = None
    progress: str | None = None


WHOLE = Course()


def train(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    seed: int,
    *,
    masks: Masks | None = None,
    course: Course = WHOLE,
) -> float:
    """Train a network in place on cross-entropy plus the recipe's penalty.

    Data order, augmentation and learning rate of step t depend only on (recipe, seed, t): training from step k on
    with the weights of step k sees exactly what a run from step 0 saw, except that momentum starts at zero.

    Args:
        model: The network; it ends in training mode.
        data: Training images.
        recipe: Hyper-parameters.
        seed: Seed of data order and augmentation.
        masks: Kept weights by parameter name; removed weights are zero after every step.
        course: The steps to make; default all, from the first to the last.

    Returns:
        Seconds spent, those before an interruption included.

    Raises:
        UserError: The loss became NaN or infinite.
    """
    loader = data.batches("train", recipe.batch_size)
    per_epoch = len(loader)
    last = recipe.epochs * per_epoch if course.last is None else course.last
    parameters = list(model.parameters())
    device = parameters[0].device
    optimizer = recipe.optimizing(parameters)
    hold_masks(model, optimizer, masks or {})
    step, spent, started = course.first, 0.0, time.perf_counter()
    if course.state is not None and course.state.exists():
        saved = load_tensors(course.state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = int(saved["step"]), float(saved["seconds"])
    penalty = recipe.penalty
    model.train()
    done, total = step - course.first, last - course.first
    hide = course.progress is None or None
    with tqdm(total=total, initial=done, desc=course.progress, unit="step", leave=False, disable=hide) as bar:
        while step < last:
            epoch, start = divmod(step, per_epoch)
            loss = torch.zeros(())
            for x, y in loader.shuffled(seed, epoch, start, recipe.augment):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(step, per_epoch)
                optimizer.zero_grad()
                with fixed_randomness(seed, step, device), recipe.arithmetic(device):
                    loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
                loss.backward()  # type: ignore[no-untyped-call]
                if penalty is not None:
                    with torch.no_grad():
                        penalty.add_gradient_(parameters, [_gradient(parameter) for parameter in parameters])
                optimizer.step()
                step += 1
                bar.update()
                if course.on_step is not None:
                    course.on_step(step, model)
                if step == last:
                    break
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"training: the loss is {loss.item()} at step {step}; lower lr={recipe.lr} or add warmup"
                )
            if course.state is not None:
                save_tensors(
                    course.state,
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": step,
                        "seconds": spent + time.perf_counter() - started,
                    },
                )
    return spent + time.perf_counter() - started


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the removed weights to zero, in place."""
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.mul_(masks[name])


def hold_masks(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks) -> None:
    """Zero the removed weights now and after every optimizer step, whatever momentum says."""
    apply_masks(model, masks)
    optimizer.register_step_post_hook(lambda *_: apply_masks(model, masks))


@contextmanager
def fixed_randomness(seed: int, step: int, device: torch.device = CPU) -> Iterator[None]:
    """Draw dropout of one step from (seed, step) and put the global random state back afterwards.

    Dropout alone is drawn where the network lies, so that its draws differ between kinds of devices.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        device: Where the network lies.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData, split: str = "test") -> float:
    """Share of correct classes, in evaluation mode."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    correct = sum(int((model(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y in data.batches(split, 100))
    model.train(was_training)
    return correct / (data.test_y if split == "test" else data.train_y).numel()


@dataclass(frozen=True)
class Network:
    """A network to train: everything its weights depend on."""

    model: str
    dataset: str
    recipe: Recipe
    seed: int

    def settings(self) -> dict[str, Any]:
        """Plain values for hashing and for tables."""
        return asdict(self) | {"recipe": self.recipe.settings()}


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@torch.no_grad()
def initial_network(name: str, data: ImageData, recipe: Recipe, seed: int) -> nn.Module:
    """Return a network with the initial weights of a seed, times the gain of a recipe.

    Args:
        name: Name of the network.
        data: What it is for, and where it lies; its weights are drawn on the CPU.
        recipe: How it will be trained.
        seed: Seed of the weights.
    """
    model = build_model(name, data.shape, data.classes, seed)
    if recipe.gain != 1:
        for weight in prunable(model).values():
            weight.mul_(recipe.gain)
    return model.to(data.device)


def fresh_network(network: Network, data: ImageData) -> nn.Module:
    """Return the network at its initial weights, which are drawn on the CPU, on the device of its data."""
    return initial_network(network.model, data, network.recipe, network.seed)


def trained_network(network: Network, data: ImageData, out: Path, progress: bool = False) -> nn.Module:
    """Return the trained network, from its run folder when it has been trained before, on whatever device.

    Args:
        network: What to train.
        data: The data set named by ``network.dataset``; the network is trained where it lies.
        out: Folder of all runs; weights go to ``out/network-<hash>/weights.pt``.
        progress: Show a progress bar.

    Returns:
        The network in evaluation mode on the device of its data.
    """
    folder = run_folder(out, "network", network.settings())
    model = fresh_network(network, data)
    weights = folder / "weights.pt"
    if not weights.exists():
        label = f"{network.model} seed {network.seed}" if progress else None
        seconds = train(
            model, data, network.recipe, network.seed, course=Course(state=folder / "state.pt", progress=label)
        )
        write_json(folder / "training.json", {"seconds": round(seconds, 1), "device": described(data.device)})
        save_tensors(weights, model.state_dict())
        (folder / "state.pt").unlink(missing_ok=True)
    model.load_state_dict(load_tensors(weights))
    return model.eval()
