"""Coupled channels: a filter, its bias and normalisation, and the inputs of all layers that read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from estimators import UserError
from estimators.parameters import TRANSPOSED, linear_elsewhere
from pruning_limits.channel_graph import EndlessError, channel_graph
from pruning_limits.groups import NONE, Groups
from pruning_limits.pattern_names import Pattern
from pruning_limits.patterns import matrices
from pruning_limits.trials import Trial, masked, same_outputs

if TYPE_CHECKING:
    from estimators import Objective

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ALONE = "no channel of it can go"
UNEQUAL = "the network without its channels puts out something else than with zeros in their place"
OUTPUT = "its channels are outputs of the network; without them nothing is connected to it"
ENDLESS = "its channels lead back to others of its own, in a way that torch-pruning does not follow"
UNFOLLOWED = "torch-pruning does not follow which channels go with its own"
SHARE = 1 / 3  # of the channels goes in the trial of a family
GOLDEN = (5**0.5 - 1) / 2  # its multiples less their whole parts spread evenly, but swapped halves show


@dataclass(frozen=True, eq=False)
class Family:
    """Channels of one dimension of the network, which several layers share.

    Attributes:
        root: Name of the first layer that puts them out.
        ids: Group of every output of that layer within the family, ``[channels]``.
        rows: Groups along the outputs of weights, by parameter name.
        columns: Groups along their inputs, likewise.
        companions: Groups along the first dimension of biases and normalisation.
        refused: Why they cannot go; empty where they can.
    """

    root: str
    ids: Tensor
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    companions: dict[str, Tensor]
    refused: str = ""

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.ids.max()) + 1

    def some(self) -> Tensor:
        """Return which groups go in a trial, bool ``[count]``: about a third of them, in no regular pattern."""
        return torch.arange(self.count) * GOLDEN % 1 < SHARE


def channels(pattern: Pattern, objective: Objective) -> Groups:
    """Return the coupled channels of a network by the dependency graph of torch-pruning.

    What goes with a channel is found by following what layers read, through residual sums, padding of channels,
    concatenations, splits and depthwise convolutions. Every family of channels is tried on a few samples: the
    physically smaller network has to put out what the masked one does. A family that does not, as before a
    normalisation over channels, is left dense, and so is one that reaches weights which are not prunable.

    Args:
        pattern: The pattern of channels.
        objective: Network and data.

    Returns:
        The groups; of every family one channel stays.

    Raises:
        UserError: The package torch-pruning is missing, or it cannot follow the network.

    Source: Fang, Ma, Song, Mi and Wang, DepGraph: towards any structural pruning, CVPR 2023.
    """
    trial = Trial(objective)
    families = [_checked(family, objective.chosen) for family in _families(trial)]
    kept = _tried(trial, families)
    return _numbered(pattern, kept, families, objective)


def smaller_network(model: nn.Module, trial: Trial, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of a network without some channels, physically smaller.

    Args:
        model: The network.
        trial: A few samples of its data, which the layers are followed with.
        removed: Outputs that go by the name of the layer that puts them out first.

    Raises:
        UserError: The package torch-pruning is missing.
    """
    result = trial.copied(model)
    others = _as_linear(result)
    graph = channel_graph(result, trial, set())
    for name, outputs in removed.items():
        if len(outputs):
            module = result.get_submodule(name)
            prune = graph.get_pruner_of_module(module).prune_out_channels
            graph.get_pruning_group(module, prune, list(outputs)).prune()
    _as_before(result, others)
    return result


def _as_linear(model: nn.Module) -> dict[str, nn.Module]:
    """Put linear layers in the place of those of other packages, which torch-pruning does not know.

    Args:
        model: A copy of the network.

    Returns:
        The layers that were there, by name.
    """
    others = {path: part for path, part in model.named_modules(remove_duplicate=False) if path}
    others = {path: part for path, part in others.items() if linear_elsewhere(part)}
    linear = dict[nn.Module, nn.Linear]()
    for path, part in others.items():
        if part not in linear:
            inputs, outputs = part.get_parameter("weight").shape
            linear[part] = nn.Linear(inputs, outputs, device="meta")
            linear[part].weight = nn.Parameter(part.get_parameter("weight").detach().T.clone())
            linear[part].bias = nn.Parameter(part.get_parameter("bias").detach().clone())
        _put(model, path, linear[part])
    return others


def _as_before(model: nn.Module, others: Mapping[str, nn.Module]) -> None:
    """Put the layers of other packages back, with the weights that are left."""
    for path, part in others.items():
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        part.register_parameter("weight", nn.Parameter(linear.weight.detach().T.contiguous()))
        part.register_parameter("bias", nn.Parameter(linear.bias.detach()))
        part.nx, part.nf = linear.weight.T.shape  # type: ignore[assignment]
        _put(model, path, part)


def _put(model: nn.Module, path: str, part: nn.Module) -> None:
    """Put a module in the place of another, as ``set_submodule`` of torch 2.5 does."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)


def _before_padding(graph: Any, group: Any, beside: set[int]) -> Any:
    """Return the group of the layer before a padding: the padding's own channels stay."""
    for item in group if beside else ():
        module = item.dep.target.module
        whole = isinstance(module, (*CONVOLUTIONS, nn.Linear)) and len(item.idxs) == graph.get_out_channels(module)
        if whole and graph.is_out_channel_pruning_fn(item.dep.handler) and not beside.intersection(item.root_idxs):
            return graph.get_pruning_group(module, item.dep.handler, list(range(len(item.idxs))))
    return group


def _families(trial: Trial) -> Iterator[Family]:
    model = trial.copied(trial.objective.model)
    _as_linear(model)
    beside = set[int]()
    graph = channel_graph(model, trial, beside)
    names = {module: name for name, module in model.named_modules()}
    roots = (graph.ops.TORCH_CONV, graph.ops.TORCH_LINEAR)
    visited = set[nn.Module]()
    for module in list(graph.module2node):
        if not isinstance(module, roots) or module in visited:
            continue
        visited.add(module)
        try:
            groups, others = _groups(graph, module, beside)
        except Exception as error:  # torch-pruning fails in many ways
            reason = ENDLESS if isinstance(error, EndlessError) else UNFOLLOWED
            weight, ids = f"{names[module]}.weight", torch.arange(graph.get_out_channels(module))
            yield Family(names[module], ids, {trial.stored.get(weight, weight): ids}, {}, {}, reason)
            continue
        visited |= others
        yield _family(graph, groups, names, trial.stored)


def _groups(graph: Any, module: nn.Module, beside: set[int]) -> tuple[list[Any], set[nn.Module]]:
    """Return what goes with the channels of a layer, and the layers that put out the same channels.

    There is one group of all channels, or one of each channel where the group of all does not tie those that go
    together, as in gated units.
    """
    beside.clear()
    pruner = graph.get_pruner_of_module(module)
    whole = graph.get_pruning_group(module, pruner.prune_out_channels, list(range(graph.get_out_channels(module))))
    others = {item.dep.target.module for item in whole if graph.is_out_channel_pruning_fn(item.dep.handler)}
    group = _before_padding(graph, whole, beside)
    root, prune, channels = group[0].dep.target.module, group[0].dep.handler, group[0].idxs
    middle = len(channels) // 2
    alone = graph.get_pruning_group(root, prune, [middle])
    if _entries(alone) == _entries(group, middle):
        return [group], others
    return [graph.get_pruning_group(root, prune, [channel]) for channel in channels], others


def _entries(group: Any, root: int | None = None) -> set[tuple[Any, Any, int]]:
    """Return what goes with a group: layer, side and index; of one root alone where it is given."""
    return {
        (item.dep.target, item.dep.handler, index)
        for item in group
        for index, place in zip(item.idxs, item.root_idxs, strict=True)
        if root is None or place == root
    }


def _family(graph: Any, groups: Sequence[Any], names: Mapping[nn.Module, str], stored: Mapping[str, str]) -> Family:
    root = groups[0][0].dep.target.module
    rows, columns, companions = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    places: list[tuple[dict[str, Any], str, int, list[int], list[int]]] = []
    refused = ""
    for item in (item for group in groups for item in group):
        module, outwards = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        path = names.get(module, "") if isinstance(module, nn.Module) else ""
        prefix = f"{path}." if path else ""
        weight = stored.get(f"{prefix}weight", f"{prefix}weight")
        if any(place is None for place in item.root_idxs):
            refused = f"torch-pruning does not tell which channels of {path or module} go together"
        elif isinstance(module, (*NORMALISATIONS, nn.PReLU)):
            parts = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                parts = []
            places += [(companions, prefix + name, len(module.weight), item.idxs, item.root_idxs) for name in parts]
        elif isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            kinds = _dimensions(module)
            if kinds is None:
                refused = f"{path} is a convolution of several groups"
                continue
            side = rows if outwards else columns
            size = module.weight.shape[kinds[0] if outwards else kinds[1]]
            places.append((side, weight, size, item.idxs, item.root_idxs))
            if outwards and module.bias is not None:
                name = stored.get(f"{prefix}bias", f"{prefix}bias")
                places.append((companions, name, size, item.idxs, item.root_idxs))
        elif path or isinstance(module, nn.Parameter):
            kind = type(module).__name__
            refused = f"its channels reach {path or 'a parameter'} ({kind}), which no channel can be taken from alone"
    outputs = int(graph.get_out_channels(root))
    ids = _coupled(outputs, places)
    for side, name, size, indices, roots in places:
        target = side.setdefault(name, torch.full((size,), NONE))
        if max(indices) >= size or max(roots) >= outputs:
            refused = refused or f"torch-pruning does not follow which inputs of {name} read its channels"
        else:
            target[torch.tensor(indices)] = ids[torch.tensor(roots)]
    if not columns:
        refused = refused or OUTPUT
    elif int(ids.max()) == 0:
        refused = refused or "all its channels are tied to each other"
    return Family(names[root], ids, rows, columns, companions, refused)


def _dimensions(module: nn.Module) -> tuple[int, int] | None:
    """Return which dimensions of a weight count outputs and inputs; a depthwise convolution has the first alone."""
    if isinstance(module, nn.Linear):
        return 0, 1
    groups = int(module.groups)  # type: ignore[arg-type]
    if isinstance(module, TRANSPOSED):
        return (1, 0) if groups == 1 else None
    if groups > 1:
        return (0, 0) if groups == module.in_channels == module.out_channels else None
    return 0, 1


def _coupled(outputs: int, places: Sequence[tuple[Any, str, int, list[int], list[int]]]) -> Tensor:
    """Number the outputs of a layer so that those which share an entry of any layer get one number."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = [(np.arange(outputs), np.arange(outputs))]
    first: dict[tuple[int, str, int], int] = {}
    for side, name, _, indices, roots in places:
        for index, root in zip(indices, roots, strict=True):
            before = first.setdefault((id(side), name, index), root)
            if before != root and max(before, root) < outputs:  # others are refused
                edges.append((np.array([before]), np.array([root])))
    left, right = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_matrix((np.ones(len(left)), (left, right)), shape=(outputs, outputs))
    _, labels = connected_components(graph, directed=False)
    _, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64))


def _checked(family: Family, chosen: Mapping[str, Tensor]) -> Family:
    """Refuse a family that reaches weights which are not prunable."""
    other = [name for name in (*family.rows, *family.columns) if name not in chosen]
    if family.refused or not other:
        return family
    reason = f"its channels reach {other[0]}, which is not among the prunable weights"
    return Family(family.root, family.ids, family.rows, family.columns, family.companions, reason)


def _tried(trial: Trial, families: Sequence[Family]) -> list[bool]:
    """Tell which families can go: the smaller network puts out what the masked one does."""
    free = [not family.refused for family in families]
    if not any(free) or _holds(trial, [family for family in families if not family.refused]):
        return free
    alone = [good and _holds(trial, [family]) for family, good in zip(families, free, strict=True)]
    if not any(alone) or _holds(trial, [family for family, good in zip(families, alone, strict=True) if good]):
        return alone
    return [False] * len(families)


def _holds(trial: Trial, families: Sequence[Family]) -> bool:
    """Compare the network without some channels with that of zeros in their place."""
    masks: dict[str, Tensor] = {}
    known = matrices(trial.objective.model, trial.objective.chosen)
    for family in families:
        gone = torch.cat([family.some(), torch.tensor([False])])
        for side, dimension in ((family.rows, 0), (family.columns, 1), (family.companions, 0)):
            for name, ids in side.items():
                weight = trial.objective.model.get_parameter(name)
                along = known[name].along(dimension) if name in known else 0
                shape = [1] * weight.dim()
                shape[along] = -1
                kept = (~gone[ids]).reshape(shape).to(weight.device).expand(weight.shape)
                masks[name] = masks[name] & kept if name in masks else kept
    removed = {family.root: family.some()[family.ids].nonzero().reshape(-1).tolist() for family in families}
    less = sum(int((~mask).sum()) for mask in masks.values())
    try:
        smaller = smaller_network(trial.objective.model, trial, removed)
        if _size(smaller) != _size(trial.objective.model) - less:
            return False
        return same_outputs(trial.results(smaller), trial.results(masked(trial, masks)), trial.objective.dtype)
    except UserError:
        raise
    except Exception:  # sizes that no longer fit each other
        return False


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _numbered(pattern: Pattern, kept: Sequence[bool], families: Sequence[Family], objective: Objective) -> Groups:
    rows, columns, companions = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    roots, numbers, count, left = dict[str, Tensor](), list[Tensor](), 0, dict[str, str]()
    chosen = objective.chosen
    known = matrices(objective.model, chosen)

    def shifted(ids: Tensor) -> Tensor:
        return torch.where(ids == NONE, NONE, ids + count)

    for place, (family, good) in enumerate(zip(families, kept, strict=True)):
        if not good:
            left |= {name: family.refused or UNEQUAL for name in family.rows if name not in left}
            continue
        for side, target, dimension in ((family.rows, rows, 0), (family.columns, columns, 1)):
            for name, ids in side.items():
                shape = [1] * chosen[name].dim()
                shape[known[name].along(dimension)] = -1
                target[name] = _joined(target.get(name), shifted(ids).reshape(shape))
        for name, ids in family.companions.items():
            side = rows if name in chosen else companions  # biases that were chosen count as weights
            side[name] = _joined(side.get(name), shifted(ids))
        roots[family.root] = shifted(family.ids)
        numbers.append(torch.full((family.count,), place))
        count += family.count
    inside = set(rows) | set(columns)
    left = {name: left.get(name, ALONE) for name in chosen if name not in inside}
    groups = torch.unique(torch.cat(numbers), return_inverse=True)[1] if numbers else None
    return Groups(pattern, count, (rows, columns), companions, groups, left, roots=roots)


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    """Join the groups of two families along one dimension of a parameter, as after a concatenation."""
    return second if first is None else torch.where(first == NONE, second, first)
