"""Groups of weights that a pattern removes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning_limits.pattern_names import Pattern

NONE = -1


@dataclass(frozen=True, eq=False)
class Groups:
    """Which weights go together, whatever their values.

    Attributes:
        pattern: The pattern.
        count: Number of groups.
        members: Group numbers 0 to ``count - 1`` of the weights by parameter name, int64, each broadcastable to the
            shape of the parameter; ``NONE`` where a weight is in no group. A weight may be in several groups, as one of
            a filter and one of an input channel; it goes with the first of them.
        companions: Group numbers along the first dimension of parameters that are no prunable weights and go with a
            group, such as biases and normalisation.
        families: Number of the family of every group ``[count]``; of each family one group stays. None where all may
            go.
        left: Why layers are left dense, by parameter name.
        roots: Of channels, the group of every output of the first layer that puts them out, by the layer's name.
        ragged: Number of weights in groups that are smaller than the pattern's, at the edges of layers.
    """

    pattern: Pattern
    count: int
    members: tuple[Mapping[str, Tensor], ...]
    companions: Mapping[str, Tensor] = field(default_factory=dict)
    families: Tensor | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    ragged: int = 0
    roots: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, name: str, weight: Tensor) -> list[Tensor]:
        """Return the group numbers of one parameter's weights, each in its shape; each pair of weight and group once.

        Args:
            name: Name of the parameter.
            weight: The parameter.

        Returns:
            One tensor per set of groups that the parameter has a part in, on its device.
        """
        expanded: list[Tensor] = []
        for member in self.members:
            if name in member:
                ids = member[name].to(weight.device).expand(weight.shape)
                for before in expanded:
                    ids = torch.where(ids == before, NONE, ids)
                expanded.append(ids)
        return expanded
