"""How often a forward pass of one sample uses each weight: multiply-accumulates per weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from estimators.distributed import gathered
from estimators.parameters import PROJECTIONS, TRANSPOSED, WEIGHTED, linear_elsewhere
from estimators.user_code import plain_modes

if TYPE_CHECKING:
    from estimators import Objective


def weight_uses(objective: Objective) -> dict[str, float | None]:
    """Count how often the weights of every chosen parameter are used for one sample, in a forward pass of a batch.

    A weight of a convolution is used once per position of its output, or of its input where it is transposed; one of a
    linear layer once per vector; one of attention once per token. Biases, normalisation, pooling and the products of
    queries with keys are not counted, padding counts as input.

    Args:
        objective: Network and data.

    Returns:
        Uses by parameter name; None for parameters of other layers, and of layers that were not called.

    Example:
        >>> from estimators import Objective
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
        >>> weight_uses(Objective(model, [(torch.ones(4, 1, 5, 5), torch.tensor([0, 1, 2, 0]))]))
        {'0.weight': 9.0, '2.weight': 1.0}
    """
    counts: dict[str, float] = {}
    stored = {id(parameter): name for name, parameter in objective.model.named_parameters()}

    with ExitStack() as stack:
        for module, names, count in _counters(objective.model, stored):

            def hook(
                _: nn.Module,
                given: Any,
                named: Any,
                output: Any,
                names: Mapping[str, str] = names,
                count: Callable[..., Mapping[str, float]] = count,
            ) -> None:
                for part, uses in count(given, named, output).items():
                    if part in names:
                        counts[names[part]] = counts.get(names[part], 0.0) + uses

            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        with plain_modes(), torch.no_grad():
            batch, size = next(iter(objective.batches()), (None, 0))
            if size:
                objective.losses(objective.chosen, batch)
    own = {name: counts[name] / size for name in objective.names if name in counts} if size else {}
    known = next((part for part in gathered(own) if part), {})  # a rank may have no batch
    return {name: known.get(name) for name in objective.names}


def _counters(
    model: nn.Module, stored: Mapping[int, str]
) -> Iterator[tuple[nn.Module, dict[str, str], Callable[..., Mapping[str, float]]]]:
    """Yield layers, the names of their parameters by their own names, and functions that count uses in a call."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {
            name.removesuffix("_orig"): stored[id(parameter)]
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) in stored
        }
        if isinstance(module, nn.MultiheadAttention):
            own["out_proj.weight"] = f"{prefix}out_proj.weight"
            yield module, own, _attention(module)
        elif isinstance(module, WEIGHTED) or linear_elsewhere(module):
            yield module, own, _layer(module)


def _layer(module: nn.Module) -> Callable[..., Mapping[str, float]]:
    if isinstance(module, nn.Linear):
        channels = module.out_features
    elif isinstance(module, TRANSPOSED):
        channels = module.in_channels
    else:
        channels = int(module.out_channels if hasattr(module, "out_channels") else module.nf)  # type: ignore[arg-type]

    def count(given: Any, named: Any, output: Any) -> Mapping[str, float]:
        tensor = next(iter((*given, *named.values()))) if isinstance(module, TRANSPOSED) else output
        return {"weight": tensor.numel() / channels} if channels else {}

    return count


def _attention(module: nn.MultiheadAttention) -> Callable[..., Mapping[str, float]]:
    def count(given: Any, named: Any, output: Any) -> Mapping[str, float]:
        query, key, value = (
            (given[place] if len(given) > place else named[name]).numel() / size
            for place, (name, size) in enumerate(
                (("query", module.embed_dim), ("key", module.kdim or 0), ("value", module.vdim or 0))
            )
        )
        together = (query + key + value) / 3
        uses = dict(zip(PROJECTIONS, (together, query, key, value), strict=True))
        return {**uses, "out_proj.weight": query}

    return count
