"""Find the weights that a pattern removes together: N:M, blocks, channels and heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from estimators import UserError
from estimators.parameters import PROJECTIONS, TRANSPOSED, linear_elsewhere
from pruning_limits.groups import Groups
from pruning_limits.pattern_names import UNSTRUCTURED, Pattern, parsed

if TYPE_CHECKING:
    from estimators import Objective

FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
UNKNOWN = "its outputs and inputs are not known"


@dataclass(frozen=True)
class Matrix:
    """How a parameter acts as a matrix from inputs to outputs, one for every position of a kernel.

    Attributes:
        outputs: Its dimension that counts outputs.
        inputs: Its dimension that counts inputs.
    """

    outputs: int
    inputs: int

    def along(self, side: int) -> int:
        """Return the dimension that counts outputs (0) or inputs (1)."""
        return (self.outputs, self.inputs)[side]


def matrices(model: nn.Module, names: Mapping[str, Tensor]) -> dict[str, Matrix]:
    """Tell which dimensions of parameters count outputs and inputs.

    Args:
        model: The network.
        names: Names of parameters, as keys.

    Returns:
        Matrices by name, without parameters of layers of other kinds than convolution, linear and attention.

    Example:
        >>> matrices(nn.Sequential(nn.Linear(3, 2)), {"0.weight": torch.zeros(2, 3)})
        {'0.weight': Matrix(outputs=0, inputs=1)}
    """
    result = {}
    for name in names:
        path, _, last = name.rpartition(".")
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        last = last.removesuffix("_orig")
        if (isinstance(module, FORWARD) and last == "weight") or (
            isinstance(module, nn.MultiheadAttention) and last in PROJECTIONS
        ):
            result[name] = Matrix(0, 1)
        elif (isinstance(module, TRANSPOSED) or linear_elsewhere(module)) and last == "weight":
            result[name] = Matrix(1, 0)
    return result


def runs(pattern: Pattern, weights: Mapping[str, Tensor], known: Mapping[str, Matrix]) -> Groups:
    """Return the groups of N:M: every M neighbours along the inputs of a layer, of which N stay.

    Args:
        pattern: An N:M pattern.
        weights: Weights by parameter name.
        known: Which of their dimensions count inputs. A layer that is not known, or whose number of inputs is no
            multiple of M, is left dense.

    Raises:
        UserError: No layer fits.

    Example:
        >>> groups = runs(parsed("1:2"), {"w": torch.ones(1, 4)}, {"w": Matrix(0, 1)})
        >>> groups.members[0]["w"].tolist()
        [[0, 0, 1, 1]]
    """
    assert pattern.sizes is not None
    of = pattern.sizes[1]
    members, left, count = dict[str, Tensor](), dict[str, str](), 0
    for name, weight in weights.items():
        if name not in known:
            left[name] = UNKNOWN
            continue
        inputs = known[name].inputs
        if weight.shape[inputs] % of:
            left[name] = f"{weight.shape[inputs]} inputs are no multiple of {of}"
            continue
        shape = weight.movedim(inputs, -1).shape
        size = weight.numel() // of
        members[name] = (count + torch.arange(size).repeat_interleave(of)).reshape(shape).movedim(-1, inputs)
        count += size
    return _some(Groups(pattern, count, (members,), left=left))


def blocks(pattern: Pattern, weights: Mapping[str, Tensor], known: Mapping[str, Matrix]) -> Groups:
    """Return the groups of blocks of so many outputs and inputs, at every position of a kernel.

    At the edges of a layer that is no multiple of the block, blocks are smaller.

    Args:
        pattern: A pattern of blocks.
        weights: Weights by parameter name.
        known: Which of their dimensions count outputs and inputs; a layer that is not known is left dense.

    Raises:
        UserError: No layer fits.

    Example:
        >>> groups = blocks(parsed("blocks:2x1"), {"w": torch.ones(3, 2)}, {"w": Matrix(0, 1)})
        >>> groups.members[0]["w"].tolist(), groups.ragged
        ([[0, 1], [0, 1], [2, 3]], 2)
    """
    assert pattern.sizes is not None
    rows, columns = pattern.sizes
    members, left, count, ragged = dict[str, Tensor](), dict[str, str](), 0, 0
    for name, weight in weights.items():
        if name not in known:
            left[name] = UNKNOWN
            continue
        dimensions = (known[name].outputs, known[name].inputs)
        moved = weight.movedim(dimensions, (0, 1)).shape
        high, wide = -(-moved[0] // rows), -(-moved[1] // columns)
        kernel = moved[2:].numel()
        row = torch.arange(moved[0])[:, None, None] // rows
        column = torch.arange(moved[1])[:, None] // columns
        ids = count + (row * wide + column) * kernel + torch.arange(kernel)
        members[name] = ids.reshape(moved).movedim((0, 1), dimensions)
        count += high * wide * kernel
        full = (moved[0] // rows * rows) * (moved[1] // columns * columns) * kernel
        ragged += weight.numel() - full
    return _some(Groups(pattern, count, (members,), left=left, ragged=ragged))


def groups_of(name: str, objective: Objective) -> Groups:
    """Return the groups of weights that a pattern removes together.

    Args:
        name: Name of a pattern, not ``"unstructured"``.
        objective: Network and data; the data are used by ``"channels"`` and ``"heads"``, whose groups are checked on a
            few samples.

    Raises:
        UserError: No layer fits the pattern, the name is unknown, or a package is missing.
    """
    pattern = parsed(name)
    if pattern.kind == "channels":
        from pruning_limits.channels import channels

        return _some(channels(pattern, objective))
    if pattern.kind == "heads":
        from pruning_limits.heads import heads

        return _some(heads(pattern, objective))
    if name == UNSTRUCTURED:
        raise UserError("pattern: single weights have no groups; use MagnitudeProfile(weights)")
    weights = objective.chosen
    build = runs if pattern.kind == "n:m" else blocks
    return build(pattern, weights, matrices(objective.model, weights))


def _some(groups: Groups) -> Groups:
    """Refuse a pattern that fits nothing."""
    if groups.count:
        return groups
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(groups.left.items())[:3])
    raise UserError(f"pattern: {groups.pattern.name} fits no layer of this network ({reasons}); ask for another one")
