"""The network and the data behind a limit, for further measurements in the same process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from estimators import Objective, UserError
from estimators.samples import first_batches

if TYPE_CHECKING:
    from pruning_limits.dense_network import Subject
    from pruning_limits.magnitude import MagnitudeProfile
    from pruning_limits.sensitivity import LayerSensitivity
    from pruning_limits.settings import Settings


class Source:
    """Network and data of a prediction; copies and pickles hold none.

    Args:
        subject: Network and data.

    Attributes:
        subject: Network and data, or None.
        sensitivities: Measured sensitivities of layers by pattern, kept for the page.
    """

    def __init__(self, subject: Subject | None = None) -> None:
        self.subject = subject
        self.sensitivities: dict[str, tuple[LayerSensitivity, ...]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return Source()

    def __reduce__(self) -> tuple[type[Source], tuple[()]]:
        return Source, ()

    def objectives(self, settings: Settings, profile: MagnitudeProfile) -> tuple[Objective, Objective | None]:
        """Return the criterion on all data, and the metric on its data or None.

        Args:
            settings: What the limit was predicted with.
            profile: The weights that it is of.

        Raises:
            UserError: The network is not at hand, or its weights have changed.
        """
        from pruning_limits.metrics import metric_errors

        subject = self.subject
        if subject is None:
            raise UserError(MISSING)
        names = list(settings.parameters)
        loader = first_batches(subject.loader, settings.max_batches)
        penalty = subject.penalty if settings.criterion == "objective" else None
        objective = Objective(subject.model, loader, subject.loss_fn, penalty)
        objective = objective.among(names)
        if any(not torch.equal(weight, profile.weights[name]) for name, weight in objective.chosen.items()):
            raise UserError("layers: the weights of the network have changed since it was predicted; predict it again")
        if subject.metric is None:
            return objective, None
        with metric_errors("loader" if subject.held_out is None else "held_out"):
            held = loader if subject.held_out is None else subject.held_out
            return objective, Objective(subject.model, held, subject.metric).among(names)


MISSING = "layers: this limit holds no network and data to measure with; predict it again, or see layer_sensitivities"
