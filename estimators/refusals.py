"""Name the reason why torch cannot differentiate twice: a layer without a second derivative, or a lost graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from estimators.errors import MissingDerivativeError, UserError
from estimators.outputs import tensors

if TYPE_CHECKING:
    from estimators.forwards import Forward
    from estimators.objective import Objective

GONE = "backward through the graph a second time"
MISSING = re.compile(
    r"once_differentiable|derivative.*not implemented|double backward|no autograd formula was registered", re.IGNORECASE
)


@contextmanager
def second_derivatives(objective: Objective) -> Iterator[None]:
    """Turn torch's complaint about a missing second derivative into one that names the layer.

    Args:
        objective: The objective that is differentiated inside the context.

    Raises:
        MissingDerivativeError: A second derivative is missing; any other error passes through.
    """
    try:
        yield
    except RuntimeError as error:
        if not MISSING.search(str(error)):
            raise
        raise _refusal(objective, str(error).splitlines()[0]) from error


def check_twice_differentiable(objective: Objective, forward: Forward) -> None:
    """Refuse functions that are marked once-differentiable, whose second derivative torch may silently take as zero.

    Args:
        objective: The objective.
        forward: One batch of it, passed through the model.

    Raises:
        MissingDerivativeError: There is such a function between the chosen weights and the loss.
    """
    name = once_differentiable_function([forward.loss])
    if name:
        raise _refusal(objective, f"{name} is marked once_differentiable")


def refuse_weight_norm(loss: Tensor) -> None:
    """Refuse fused weight normalisation, whose norm PyTorch takes for a constant when it differentiates twice.

    Args:
        loss: A scalar with its graph.

    Raises:
        MissingDerivativeError: Its graph has such a node.
    """
    if any(name.startswith("WeightNormInterface") for name, _ in graph_nodes([loss])):
        reason = "PyTorch computes wrong second derivatives of weight normalisation"
        raise MissingDerivativeError(
            f"model: {reason}; use the GGN or fix the weights with torch.nn.utils.parametrize.remove_parametrizations",
            reason,
        )


@contextmanager
def no_lost_graphs() -> Iterator[None]:
    """Turn torch's complaint about a graph that is gone into one that says who freed it.

    Raises:
        UserError: The model freed its graph inside its forward pass.
    """
    try:
        yield
    except RuntimeError as error:
        if GONE not in str(error):
            raise
        raise UserError(
            "model: it differentiates inside its forward pass and drops the graph in evaluation mode, or loss_fn calls "
            "backward(); call torch.autograd.grad with create_graph=True there, not with create_graph=self.training"
        ) from error


def graph_nodes(tensors: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every node of the graph behind some tensors with its name, as far as the nodes of others, its inputs."""
    waiting = [tensor.grad_fn for tensor in tensors]
    visited = {tensor.grad_fn for tensor in inputs}
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node.name(), node
        waiting += [before for before, _ in node.next_functions]


def once_differentiable_function(tensors: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> str | None:
    """Name a function that is marked once-differentiable in the graph behind some tensors, as far as its inputs."""
    for _, node in graph_nodes(tensors, inputs):
        function: Any = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if code and code in once_differentiable.__code__.co_consts:  # the wrapper that the decorator returns
            return str(function.__name__)
    return None


def _refusal(objective: Objective, reason: str) -> MissingDerivativeError:
    culprit = _culprit(objective)
    return MissingDerivativeError(
        f"model: no second derivative of {culprit} ({reason}); write it with operations that torch "
        "differentiates twice, or choose only weights behind it with parameters=",
        f"{culprit} has no second derivative ({reason})",
    )


def _culprit(objective: Objective) -> str:
    """Pass one batch and differentiate every module by itself, the innermost first."""
    culprits: list[nn.Module] = []
    inside = False

    def probe(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal inside
        if culprits or inside:
            return
        inside = True
        if not _twice_differentiable(module, arguments, keywords):
            culprits.append(module)
        inside = False

    modules = {module: name for name, module in objective.model.named_modules()}
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(probe, with_kwargs=True))
        batch, _ = next(objective.batches())
        objective.losses({name: w.clone().requires_grad_() for name, w in objective.chosen.items()}, batch)
    if not culprits:
        return "the loss function"
    kind, name = type(culprits[0]).__name__, modules[culprits[0]]
    return f"layer '{name}' ({kind})" if name else f"what the forward of {kind} does outside of its layers"


def _twice_differentiable(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    with torch.enable_grad():
        positional = [_leaf(value) for value in arguments]
        named = {key: _leaf(value) for key, value in keywords.items()}
        try:
            outputs = module.forward(*map(_copy, positional), **{key: _copy(value) for key, value in named.items()})
            leaves = (*positional, *named.values(), *module.parameters())
            sources = [leaf for leaf in leaves if _differentiable(leaf)]
            targets = [output for output in tensors(outputs) if _differentiable(output)]
            if once_differentiable_function(targets):
                return False
            duals = [torch.ones_like(target, requires_grad=True) for target in targets]
            slopes = torch.autograd.grad(targets, sources, duals, create_graph=True, allow_unused=True)
            slopes = tuple(slope for slope in slopes if _differentiable(slope))
            torch.autograd.grad(slopes, [*duals, *sources], [slope.detach() for slope in slopes], allow_unused=True)
        except RuntimeError as error:
            return not MISSING.search(str(error))
    return True


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.is_floating_point())


def _copy(value: Any) -> Any:
    """Copy a tensor inside the graph, so that a layer may write to its input."""
    return value.clone() if isinstance(value, Tensor) else value
