"""The graph of which channels go with which, by torch-pruning, mended where it is wrong or without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from estimators import UserError
from pruning_limits.trials import Trial

MISSING = "pattern: channels need the package torch-pruning; install it with pip install 'pruning-limits[structured]'"
OTHERS = "take heads, blocks or N:M, which need no such graph"
MOST_TIMES = 32  # that what goes with a channel passes one operation, beside four times the number of its neighbours


def channel_graph(model: nn.Module, trial: Trial, beside: set[int]) -> Any:
    """Follow the layers of a network.

    Args:
        model: The network.
        trial: A few samples of its data.
        beside: Takes the channels at the root of a group that a padding puts beside others, see ``_Padded``.

    Returns:
        The ``DependencyGraph`` of torch-pruning, whose ``get_pruning_group`` raises ``EndlessError`` where it would not
        end.

    Raises:
        UserError: The package torch-pruning is missing, or it cannot follow the network.
    """
    try:
        import torch_pruning
    except ImportError:
        raise UserError(MISSING) from None
    graph = _followed(torch_pruning)
    try:
        with torch.enable_grad():
            for parameter in model.parameters():
                parameter.requires_grad_()
            graph.build_dependency(model, trial.batch, forward_fn=trial.traced, verbose=False)
    except UserError:
        raise
    except Exception as error:
        reason = _joined_to_unknown(graph, model) or (str(error).strip() or type(error).__name__).splitlines()[0]
        name = type(model).__name__
        raise UserError(f"pattern: the layers of {name} cannot be followed: {reason}; {OTHERS}") from error
    for node in graph.module2node.values():
        _follow_padding(node, beside)
        if node.type == graph.ops.OPTYPE.CONCAT:
            _count_joined(node)
    return graph


def _followed(torch_pruning: Any) -> Any:
    """Return a graph of dependencies, not yet built.

    It takes a concatenation of tokens for none of channels, and channels that are parted into groups for those that
    they were, so that a shuffle of groups is left to the trial. It raises where it would follow channels without end.
    """

    class Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
        def get_pruning_group(self, *arguments: Any, **options: Any) -> Any:
            bounded: _Bounded | None = None
            for node in self.module2node.values():
                if isinstance(node.dependencies, _Followed):
                    node.dependencies.times = 0
                    continue
                node.dependencies = _Followed(node.dependencies)
                bounded = bounded or _Bounded(_widest(self))
                for dependency in node.dependencies:
                    dependency.index_mapping[1] = dependency.index_mapping[1] or bounded
            return super().get_pruning_group(*arguments, **options)

        def _trace(self, *arguments: Any, **options: Any) -> Any:
            nodes = super()._trace(*arguments, **options)
            for node in nodes.values():
                joined, reshaped = (node.type == self.ops.OPTYPE[name] for name in ("CONCAT", "RESHAPE"))
                if (joined and _beside_channels(node.grad_fn)) or (reshaped and _parted(node.grad_fn)):
                    node.type = self.ops.OPTYPE.ELEMENTWISE
            return nodes

    return Graph()


def _shape(function: Any, number: int = 0) -> tuple[int, ...]:
    """Return the shape that a function of autograd's graph put out; empty where this torch does not tell."""
    outputs = getattr(function, "_input_metadata", ())
    return tuple(outputs[number].shape) if outputs else ()


def _joined_dimension(concatenation: Any) -> int:
    """Return the dimension of a concatenation as it was given, negative if it was counted from the end."""
    dimension: int = getattr(concatenation, "_saved_dim", 0)
    return dimension - (1 << 64) if dimension >= 1 << 63 else dimension  # autograd keeps no sign


def _parted(reshape: Any) -> bool:
    """Tell whether images have more dimensions than four before or after, which torch-pruning fails on."""
    return max(len(getattr(reshape, "_saved_self_sym_sizes", ())), len(_shape(reshape))) > len("nchw")


class EndlessError(Exception):
    """The channels of a layer lead back to other channels of it, again and again."""


class _Followed(list[Any]):
    """Dependencies of a layer or an operation, which are followed a limited number of times for one group."""

    def __init__(self, dependencies: Iterable[Any]) -> None:
        super().__init__(dependencies)
        self.times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        if self.times > MOST_TIMES + 4 * len(self):  # numbering channels goes through them, too
            raise EndlessError
        return super().__iter__()


@dataclass(frozen=True)
class _Bounded:
    """Passes on numbers of channels that there may be.

    Attributes:
        most: Largest number of channels anywhere in the network.
    """

    most: int

    def __call__(self, indices: Sequence[Any]) -> Sequence[Any]:
        """Return the indices of torch-pruning."""
        if len(indices) > self.most or any(place.idx >= self.most for place in indices):
            raise EndlessError
        return indices


def _widest(graph: Any) -> int:
    """Return the largest size of a parameter in any dimension, or of what is joined."""
    modules = [node.module for node in graph.module2node.values()]
    sizes = [max(parameter.shape, default=0) for parameter in graph.model.parameters()]
    joined = [sum(size or 0 for size in getattr(module, "concat_sizes", None) or ()) for module in modules]
    return max([*sizes, *joined])


def _beside_channels(concatenation: Any) -> bool:
    """Tell whether a concatenation is along a dimension, counted from the end, that holds no channels.

    Such are the keys and values that a language model keeps, and rotations of them: torch-pruning takes those for
    channels, and fails on what is not there yet.
    """
    dimension, size = _joined_dimension(concatenation), len(_shape(concatenation))
    if dimension >= 0 or not size:
        return False
    channels = (1,) if size >= len("nchw") else (1, size - 1)
    return dimension + size not in channels


def _joined_to_unknown(graph: Any, model: nn.Module) -> str:
    """Name the layer before a concatenation whose numbers of channels torch-pruning does not know; empty where none."""
    names = {module: name for name, module in model.named_modules() if name}
    for node in getattr(graph, "module2node", {}).values():
        if None not in (getattr(node.module, "concat_sizes", None) or ()):
            continue
        ahead, known = list(node.inputs), {node}
        while ahead:
            before = ahead.pop(0)
            if before.module in names:
                return f"the outputs of {names[before.module]} are joined to others whose channels are not known"
            ahead += [source for source in before.inputs if source not in known]
            known.update(before.inputs)
    return ""


@dataclass(frozen=True)
class _Padded:
    """Numbers of channels behind a padding from those before it, or back.

    Attributes:
        front: Number of channels that are put before the others.
        count: Number of the others.
        back: Whether numbers before the padding are wanted.
        beside: Takes the channels at the root of a group that are none of the others: they belong to the padding.
    """

    front: int
    count: int
    back: bool
    beside: set[int]

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """Return other indices of torch-pruning, each with its index at the root of the group."""
        moved = [
            type(place)(idx=place.idx + (-self.front if self.back else self.front), root_idx=place.root_idx)
            for place in indices
        ]
        if self.back:
            self.beside.update(place.root_idx for place in moved if not 0 <= place.idx < self.count)
            moved = [place for place in moved if 0 <= place.idx < self.count]
        return moved


def _count_joined(node: Any) -> None:
    """Tell how many channels are joined where torch-pruning counts others, as of parts of a layer that are swapped.

    It takes those of the layer before, and would number channels further and further without end.
    """
    joined, counted = _shape(node.grad_fn), getattr(node.module, "concat_sizes", None)
    parts = [(source, number) for source, number in getattr(node.grad_fn, "next_functions", ()) if source is not None]
    if not joined or not counted or len(parts) != len(counted):
        return
    place = _joined_dimension(node.grad_fn)
    if joined[place] == sum(size or 0 for size in counted):
        return
    shapes = [_shape(source, number) for source, number in parts]
    if all(shapes):
        node.module.concat_sizes = [shape[place] for shape in shapes]


def _follow_padding(node: Any, beside: set[int]) -> None:
    """Tell which channels are which where zeros are put beside them, as in shortcuts without parameters.

    torch-pruning takes padding for an operation that leaves every channel where it is.
    """
    pads, shape = getattr(node.grad_fn, "_saved_pad", ()), _shape(node.grad_fn)
    place = 2 * (len(shape) - 2)  # pairs of numbers from the last dimension on; channels are in the second
    if len(shape) < len("nchw") or len(pads) < place + 2:
        return
    front, count = pads[place], shape[1] - pads[place] - pads[place + 1]
    for dependency in node.dependencies:
        if dependency.target in node.inputs:
            dependency.index_mapping[1] = _Padded(front, count, True, beside)
    for dependency in (dependency for source in node.inputs for dependency in source.dependencies):
        if dependency.target is node:
            dependency.index_mapping[1] = _Padded(front, count, False, beside)
