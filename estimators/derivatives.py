"""Check that the gradients that torch reports are the derivatives of the loss."""

from __future__ import annotations

import math
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
COARSE = 1e-4  # in types as short as bfloat16 only a gradient that is missing altogether can be told from rounding
FAKE = ("FakeQuantize", "FusedMovingAvgObsFq")


def untrue_derivatives(objective: Objective, seed: int = 0) -> tuple[str, ...]:
    r"""Name the chosen parameters that move the loss otherwise than its gradient says.

    For every parameter the difference :math:`L(w + h v) - L(w - h v)` is held against :math:`2 h\, g^\top v`, with v
    the direction of its gradient, or a random one where the gradient is zero. The step h begins at a hundredth of the
    parameter's norm and gets shorter until the two agree or rounding hides both. They never agree where a model cuts
    the graph, as with ``torch.no_grad``, ``detach`` and gates, and where it reports the gradient of another function,
    as straight-through estimators do. A parameter is named where differences of the last two steps that tell are in
    proportion to the steps, so that they have settled, and beyond what rounding can explain; where tiny steps do not
    move the loss at all, though the gradient says that they do, as where weights are rounded; and where the loss jumps,
    though its gradient is zero and that of other parameters is not, as behind round, sign and argmax.

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
        if _untrue(loss, weights, gradient, place, noise, generator):
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


def _untrue(
    loss: Objective, weights: Tensor, gradient: Tensor, place: slice, noise: float, generator: torch.Generator
) -> bool:
    """Tell whether differences of the loss along one parameter have settled on another value than its gradient's."""
    layer, slope = weights[place].double(), gradient[place]
    direction = slope
    if not slope.any():
        direction = torch.randn(layer.shape, generator=generator, dtype=torch.float64, device="cpu").to(slope)
        direction = direction * (layer != 0)
    if not direction.any():
        return False
    size = float(layer.norm()) or float(weights.double().norm()) * (len(layer) / len(weights)) ** 0.5
    direction = direction * (size / float(direction.norm()))

    def difference(step: float) -> tuple[float, float]:
        """Return how the loss moves from one side to the other, and how it would by its gradient."""
        ahead, behind = weights.clone(), weights.clone()
        ahead[place] = (layer + step * direction).to(weights)
        behind[place] = (layer - step * direction).to(weights)
        told = float(slope @ (ahead[place].double() - behind[place].double()))
        return loss.value(ahead) - loss.value(behind), told

    if torch.finfo(weights.dtype).eps > COARSE and slope.any():
        return False

    slope_along = 2 * float(slope @ direction)
    tiny = max(TINY_STEP, SHORTER * CLEAR * noise / slope_along) if slope_along else FIRST_STEP
    if tiny < FIRST_STEP:  # long enough for the gradient to be seen beyond rounding
        moved, told = difference(tiny)
        if abs(moved - told) <= TRUE_WITHIN * max(abs(told), abs(moved)) + noise:
            return False
        if moved == 0 and difference(tiny / SHORTER)[0] == 0:
            return True
    untrue, before, flat = False, None, bool(gradient.any()) and not slope.any()
    for number in range(-1 if flat else 0, STEPS):
        moved, told = difference(FIRST_STEP / SHORTER**number)
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
