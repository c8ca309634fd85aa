"""A copy of a network that is pruned to a sparsity in stages and re-tuned."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

import torch
from torch import Tensor, nn

from estimators import Objective, UserError
from estimators.arguments import plain_model
from estimators.files import path_of, refuse_unwritable
from estimators.samples import first_batches
from estimators.substitution import intact
from estimators.user_code import plain_modes
from estimators.vectors import named
from pruning_limits.answers import Answer
from pruning_limits.dense_network import Subject
from pruning_limits.fine_tuning import FineTuning, Network
from pruning_limits.group_profile import GroupProfile
from pruning_limits.groups import Groups
from pruning_limits.magnitude import MagnitudeProfile, removed_count
from pruning_limits.masking import detached_copy, recompute_weights
from pruning_limits.metrics import metric_errors
from pruning_limits.one_shot import PairedDifferences, draws_of
from pruning_limits.pattern_names import UNSTRUCTURED
from pruning_limits.progress import Progress, refuse_progress, told
from pruning_limits.retuning import MOST_COMPARED, kept_network, network_state, run_seed
from pruning_limits.settings import Retuning, Settings
from pruning_limits.states import States

KEY = "re-tuned copy"


@dataclass(frozen=True)
class Reached:
    """A pruned and re-tuned network, compared with the dense one.

    Attributes:
        network: The network.
        count: Number of its removed weights.
        stages: Number of stages that were completed.
        samples: Training samples of a stage.
        interrupted: Whether Ctrl-C ended it.
    """

    network: Network
    count: int
    stages: int
    samples: int
    interrupted: bool


def retuned_copy(
    subject: Subject,
    asked: Settings,
    way: Sequence[float],
    progress: Progress = None,
    checkpoint: str | Path | None = None,
    groups: Groups | None = None,
) -> tuple[nn.Module, Answer]:
    """Return a copy of a model that is pruned in stages and re-tuned, and what became of its metric.

    Ctrl-C ends the re-tuning: the best network so far is pruned to the sparsity that was asked for, and returned.

    Args:
        subject: Network and data.
        asked: What must not get worse, how much re-tuning may take, and the seed; names of the prunable weights, or
            none for the default.
        way: Rising sparsities of the stages; the last one is that of the copy. In a pattern each means the least that
            can be had and that removes as much or more.
        progress: See ``predict_limit``.
        checkpoint: File that keeps the state after every stage; a run that was killed continues from it.
        groups: Weights that go together; None removes single weights.

    Returns:
        The copy, exactly zero where weights are removed, and its answer of rung ``"re-tuned"``.

    Raises:
        UserError: Bad input, told in one line; the model is left as it is in any case.
    """
    started = time.perf_counter()
    refuse_progress(progress)
    if checkpoint is not None:
        refuse_unwritable(path_of("checkpoint", checkpoint))
    model = plain_model(subject.model)
    retuning = asked.retune or Retuning()
    names = [escape(name) for name in asked.parameters] or subject.parameters
    penalty = subject.penalty if asked.criterion == "objective" else None
    with plain_modes(), intact(model):
        loader = first_batches(subject.loader, asked.max_batches)
        objective = Objective(model, loader, subject.loss_fn, penalty, names)
        profile = MagnitudeProfile(objective.chosen) if groups is None else GroupProfile(objective.chosen, groups)
        _refuse_sparsity(profile, way[-1])
        counts = [removed_count(sparsity, profile.dimension) for sparsity in way]
        tuning = FineTuning(objective, retuning.samples, retuning.passes, run_seed(asked.seed, 0), groups=groups)
        pattern = UNSTRUCTURED if groups is None else groups.pattern.name
        states = States(checkpoint, _fingerprint(objective, asked, (pattern, *counts)))
        total = objective.samples
    reached = _reached(tuning, counts, states, progress)
    with plain_modes(), intact(model):
        status, metric = _measured(subject, objective, profile, tuning, reached.network, asked)
    result = _copy(model, tuning, reached.network)
    seconds = time.perf_counter() - started
    stages = "in one stage" if reached.stages == 1 else f"in {reached.stages} stages"
    text = f"pruned and re-tuned {stages} on {min(reached.samples, total):,} training samples each, {seconds:.0f} s"
    if reached.interrupted:
        text = f"interrupted after {reached.stages} of {len(counts)} stages; the best network so far, {text}"
    sparsity = reached.count / profile.dimension
    return result, Answer("re-tuned", sparsity, sparsity, sparsity, "measured", metric, f"{text}; {status}")


def _refuse_sparsity(profile: MagnitudeProfile, sparsity: float) -> None:
    """Refuse a sparsity below what is removed already, other than that of a pattern, and one that leaves nothing."""
    if isinstance(profile, GroupProfile):
        profile.refuse_other(sparsity)
    count = profile.count(sparsity)
    if count < profile.zeros:
        share = profile.zeros / profile.dimension
        raise UserError(f"sparsity: {share:.2%} of the weights are removed already; ask for more than {sparsity:.2%}")
    if count == profile.dimension:
        raise UserError(f"sparsity: {sparsity:.6g} leaves no weight to re-tune; ask for less")


def _reached(tuning: FineTuning, counts: Sequence[int], states: States, progress: Progress) -> Reached:
    """Go through the stages, and keep the best network so far where Ctrl-C ends them."""
    best, done, size, at = tuning.dense, 0, 0, -1
    state = states.kept(KEY)
    if state is not None:
        try:
            best, done = kept_network(state, tuning.dense), int(state["steps"])
            at, size = int(state["count"]), int(state["size"])
        except (KeyError, TypeError, ValueError):
            raise UserError("checkpoint: what it holds of re-tuning is damaged; delete it and start again") from None
    interrupted = False
    try:
        with intact(tuning.objective.model), told(progress, "stages", len(counts), "stage") as tell:
            for stage in range(done, len(counts)):
                tell(stage)
                base, count = best, tuning.attained(best, counts[stage])
                for improved in tuning.improvements(base, count):
                    best, at, size = improved, count, tuning.size
                done = stage + 1
                states.keep(KEY, {"steps": done, "count": at, "size": size, **network_state(best)}, at_once=True)
            tell(len(counts))
    except KeyboardInterrupt:
        interrupted = True
    if at < counts[-1]:
        with intact(tuning.objective.model):
            at = tuning.attained(best, counts[-1])
            best = next(tuning.improvements(best, at))
    return Reached(best, at, done, size or tuning.size, interrupted)


def _measured(
    subject: Subject,
    objective: Objective,
    profile: MagnitudeProfile,
    tuning: FineTuning,
    network: Network,
    asked: Settings,
) -> tuple[str, float | None]:
    """Say what the network has lost, and return its mean metric."""
    evaluated = tuning.evaluated_by(network)
    if subject.metric is None:
        draws = [part for part in draws_of(objective, asked.seed) if part.samples <= MOST_COMPARED]
        part = draws[-1] if draws else objective
        rise = PairedDifferences([part], profile, part.sample_losses()).of(evaluated)
        return f"the {asked.criterion} rises by {rise.mean:.3g} on {part.samples:,} training samples", None
    where = "loader" if subject.held_out is None else "held_out"
    with metric_errors(where):
        loader = subject.loader if subject.held_out is None else subject.held_out
        measure = Objective(subject.model, loader, subject.metric, None, [escape(name) for name in objective.names])
        dense = measure.sample_losses()
        drop = PairedDifferences([measure], profile, dense, sign=-1).of(evaluated)
    mean = float((dense[0] * dense[1]).sum() / dense[1].sum())
    kind = "training" if subject.held_out is None else "held-out"
    text = f"the {asked.metric} falls by {drop.mean:.3g} +- {drop.spread:.1g} to {mean - drop.mean:.4g} on "
    text += f"{measure.samples:,} {kind} samples"
    if asked.max_drop is not None:
        within = "within" if drop.mean <= asked.max_drop else "more than"
        text += f", {within} the {asked.max_drop:g} that it may"
    return text, mean - drop.mean if math.isfinite(drop.mean) else None


@torch.no_grad()
def _copy(model: nn.Module, tuning: FineTuning, network: Network) -> nn.Module:
    """Return a deep copy of the model with the weights and statistics of a network."""
    result = detached_copy(model)
    parameters, buffers = dict(result.named_parameters()), dict(result.named_buffers())
    for name, weight in named(network.vector, tuning.objective.chosen).items():
        parameters[name].copy_(weight)
    for name, buffer in network.buffers.items():
        buffers[name].copy_(buffer)
    recompute_weights(result)
    return result


def _fingerprint(objective: Objective, asked: Settings, stages: tuple[str | int, ...]) -> str:
    """Hash all weights, what was asked for, and the pattern and the stages."""
    digest = hashlib.sha256(repr((replace(asked, parameters=()), stages, objective.samples)).encode())
    tensors: list[Tensor] = [*objective.chosen.values(), *objective.fixed.values()]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
