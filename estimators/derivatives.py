"""Check that the gradients that torch reports are the derivatives of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from estimators.distributed import gathered
from estimators.errors import UserError
from estimators.objective import Objective
from estimators.refusals import graph_nodes
from estimators.samples import shrinking

MOST_SAMPLES, FEWEST_SAMPLES, SAMPLES_TIMES_LAYERS = 64, 8, 2048
FIRST_STEP, SHORTER, STEPS, TINY_STEP = 1e-2, 4.0, 8, 1e-5
TRUE_WITHIN, STEADY_WITHIN, UNTRUE_BEYOND, UNDECIDED, CLEAR = 0.2, 0.25, 0.4, 3.0, 50.0
LARGEST_ROUNDING = 1e-5
ONE_SIDED = 0.25  # second differences over first ones
COARSE = 1e-4  # in types as short as bfloat16 only a gradient that is missing altogether can be told from rounding
FAKE = ("FakeQuantize", "FusedMovingAvgObsFq")


def untrue_derivatives(objective: Objective, seed: int = 0) -> tuple[str, ...]:
    r"""Name the chosen parameters that move the loss otherwise than its gradient says.

    For every parameter the difference :math:`L(w + h v) - L(w - h v)` is held against :math:`2 h\, g^\top v`, with v
    the direction of its gradient, or a random one where the gradient is zero. The step h begins at a hundredth of the
    parameter's norm and gets shorter until the two agree or rounding hides both. They never agree where a model cuts
    the graph, as with ``torch.no_grad``, ``detach`` and gates, and where it reports the gradient of another function,
    as straight-through estimators do. Units whose gradient is zero beside others that have one are held against it by
    themselves, where the loss moves on both sides of them alike. A parameter is named where differences of the last two
    steps that tell are in proportion to the steps, so that they have settled, and beyond what rounding can explain;
    where tiny steps do not move the loss at all, though the gradient says that they do, as where weights are rounded;
    and where the loss jumps, though its gradient is zero and that of other parameters is not, as behind round, sign and
    argmax.

    Args:
        objective: The objective; a few of its samples are passed twice per parameter.
        seed: Seed of the sub-sample and of random directions.

    Returns:
        Names; empty where all derivatives are true.

    Raises:
        UserError: No graph leads from the loss to any chosen weight, no chosen weight has a true derivative, or the
            model is fake-quantised.

    Example:
        >>> class Frozen(torch.nn.Sequential):
        ...     def forward(self, x):
        ...         with torch.no_grad():
        ...             x = self[0](x)
        ...         return self[1](x)
        >>> model = Frozen(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)).double()
        >>> data = [(torch.randn(8, 3).double(), torch.arange(8) % 2)]
        >>> untrue_derivatives(Objective(model, data))
        ('0.weight',)
    """
    samples = min(MOST_SAMPLES, max(FEWEST_SAMPLES, SAMPLES_TIMES_LAYERS // len(objective.names)))
    part = objective.subset(samples, seed)
    loss = part.in_weights(part.weights)
    _refuse_without_graph(loss)
    weights, gradient = loss.vector(), loss.gradient().double()
    generator = torch.Generator().manual_seed(seed)
    noise = _noise(loss, weights, generator)
    untrue, start = [], 0
    for name, tensor in loss.chosen.items():
        place = slice(start, start + tensor.numel())
        start = place.stop
        layer = _Layer(loss, weights, place, gradient[place], noise)
        if layer.untrue(tensor.shape, bool(gradient.any()), generator):
            untrue.append(name)
    if len(untrue) == len(objective.names):
        raise UserError(
            "model: no chosen weight has a true derivative: the loss moves otherwise than its gradient says; look for "
            "torch.no_grad, detach, straight-through estimators, or a graph that is dropped in evaluation mode "
            "(create_graph=self.training), and choose weights behind them with parameters="
        )
    return tuple(untrue)


def _refuse_without_graph(loss: Objective) -> None:
    """Refuse a loss that no graph connects with the chosen weights."""
    with loss.one_pass():
        connected = _connected(loss)
    if not any(gathered(connected)):
        raise UserError(
            "loss_fn: no gradient of the loss reaches any chosen weight; do not detach losses or outputs nor call the "
            "model under torch.no_grad, and where the model differentiates inside its forward pass let it call "
            "torch.autograd.grad with create_graph=True, also in evaluation mode"
        )


@shrinking
@torch.enable_grad()
def _connected(loss: Objective) -> bool:
    """Tell whether the losses of a batch of this rank have a graph."""
    weights = {name: tensor.requires_grad_() for name, tensor in loss.chosen.items()}
    for batch, _ in loss.batches():
        losses = loss.losses(weights, batch)
        if any(name.startswith(FAKE) for name, _ in graph_nodes([losses])):
            raise UserError(
                "model: fake quantisation reports the derivatives of another function; give the floating point "
                "network, or switch it off with model.apply(torch.ao.quantization.disable_fake_quant)"
            )
        if losses.requires_grad:
            return True
    return False


def _noise(loss: Objective, weights: Tensor, generator: torch.Generator) -> float:
    """Return how far rounding moves the loss: ten times the largest change by weights in their last digits.

    Where these do not move it, as in a model that computes in a shorter type on the way, larger changes of the weights
    show the steps in which it moves. A loss of a shorter type than the weights moves in steps of that type.
    """
    dense, epsilon = loss.value(weights), torch.finfo(weights.dtype).eps
    scale, change = 2 * epsilon, 0.0
    while not change and scale < LARGEST_ROUNDING:
        for _ in range(3):
            signs = torch.randint(0, 2, weights.shape, generator=generator, device="cpu").mul_(2).sub_(1).to(weights)
            change = max(change, abs(loss.value(weights * (1 + scale * signs)) - dense))
        scale *= 16
    step = max([epsilon, *(10 * torch.finfo(kind).eps for kind in _types(loss) if kind != weights.dtype)])
    return 10 * change + step * abs(dense)


@torch.no_grad()
def _types(loss: Objective) -> set[torch.dtype]:
    """Return the types of the losses on all ranks."""
    own = [loss.losses(loss.chosen, batch).dtype for batch, _ in islice(loss.batches(), 1)]
    return {kind for kinds in gathered(own) for kind in kinds}


@dataclass(frozen=True)
class _Layer:
    """One parameter, and how the loss moves with it.

    Attributes:
        loss: Mean loss of a few samples.
        weights: The weights of all chosen parameters ``[D]``.
        place: Where this one is among them.
        slope: Its gradient, float64.
        noise: How far rounding moves the loss.
    """

    loss: Objective
    weights: Tensor
    place: slice
    slope: Tensor
    noise: float

    def one_sided(self, direction: Tensor, step: float) -> bool:
        """Tell whether the loss moves on one side more than on the other, as where units wake up."""
        dense, (ahead, behind) = self.loss.value(self.weights), self._sides(direction, step)
        ends = [self.loss.value(weights) for weights in (ahead, behind)]
        return abs(sum(ends) - 2 * dense) > ONE_SIDED * abs(ends[0] - ends[1]) + self.noise

    def _sides(self, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
        layer = self.weights[self.place].double()
        ahead, behind = self.weights.clone(), self.weights.clone()
        ahead[self.place] = (layer + step * direction).to(self.weights)
        behind[self.place] = (layer - step * direction).to(self.weights)
        return ahead, behind

    def difference(self, direction: Tensor, step: float) -> tuple[float, float]:
        """Return how the loss moves from one side to the other, and how it would by its gradient."""
        ahead, behind = self._sides(direction, step)
        told = float(self.slope @ (ahead[self.place].double() - behind[self.place].double()))
        return self.loss.value(ahead) - self.loss.value(behind), told

    def untrue(self, shape: torch.Size, others: bool, generator: torch.Generator) -> bool:
        """Tell whether differences of the loss have settled on another value than that of the gradient.

        Units whose gradient is zero, beside others that have one, are moved by themselves along their weights, with a
        random sign for each. Those that are dead do not move the loss; those that the model detaches do.

        Args:
            shape: Of the parameter.
            others: Whether any parameter has a gradient.
            generator: Of random directions.
        """
        layer, dense = self.weights[self.place].double(), bool(self.slope.any())
        if torch.finfo(self.weights.dtype).eps > COARSE and dense:
            return False
        if not dense:
            random = torch.randn(layer.shape, generator=generator, dtype=torch.float64, device="cpu").to(layer)
            return self._apart(random * (layer != 0), flat=others)
        if self._apart(self.slope):
            return True
        silent = ~self.slope.reshape(shape[0], -1).any(1)
        signs = (2 * torch.randint(0, 2, shape[:1], generator=generator, device="cpu") - 1).to(layer) * silent
        moving = layer * signs.repeat_interleave(len(layer) // shape[0])
        moving *= float(layer.norm()) / max(float(moving.norm()), 1e-300)
        return self._apart(moving) and not any(self.one_sided(moving, FIRST_STEP / SHORTER**n) for n in (1, 2, 3))

    def _apart(self, direction: Tensor, flat: bool = False) -> bool:
        if not direction.any():
            return False
        size = float(self.weights[self.place].double().norm())
        size = size or float(self.weights.double().norm()) * (len(self.slope) / len(self.weights)) ** 0.5
        direction, noise = direction * (size / float(direction.norm())), self.noise
        slope_along = 2 * abs(float(self.slope @ direction))
        tiny = max(TINY_STEP, SHORTER * CLEAR * noise / slope_along) if slope_along else FIRST_STEP
        if tiny < FIRST_STEP:  # long enough for the gradient to be seen beyond rounding
            moved, told = self.difference(direction, tiny)
            if abs(moved - told) <= TRUE_WITHIN * max(abs(told), abs(moved)) + noise:
                return False
            if moved == 0 and self.difference(direction, tiny / SHORTER)[0] == 0:
                return True
        untrue, before = False, None
        for number in range(-1 if flat else 0, STEPS):
            moved, told = self.difference(direction, FIRST_STEP / SHORTER**number)
            larger, apart = max(abs(told), abs(moved)), abs(moved - told)
            if not math.isfinite(moved) or (larger > noise and apart <= TRUE_WITHIN * larger):
                return False
            if larger <= noise:
                if flat and before is not None and abs(before) > SHORTER**3 * UNDECIDED * noise:
                    return True  # a smooth loss without a slope moves with the cube of the step at least
                break
            if before is not None and larger > 2 * UNDECIDED * noise:
                steady = abs(before / SHORTER - moved) <= STEADY_WITHIN * max(abs(moved), abs(before / SHORTER)) + noise
                untrue = steady and apart > UNTRUE_BEYOND * larger + UNDECIDED * noise
            before = moved
        return untrue


def zero_weights_loss(objective: Objective, seed: int = 0) -> float:
    """Return the mean loss of a few samples, without penalty, where all chosen weights are zero.

    Args:
        objective: The objective.
        seed: Seed of the draw of samples.

    Returns:
        The loss, which tells how small a loss can be told from rounding; NaN where it is undefined.
    """
    part = objective.subset(MOST_SAMPLES, seed)
    value = part.in_weights(part.weights).value(torch.zeros_like(part.vector()))
    return value if math.isfinite(value) else math.nan
