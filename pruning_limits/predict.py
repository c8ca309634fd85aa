"""From a trained model and its data to the pruning limit."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from estimators import L1, Objective, Penalty, UserError
from estimators.arguments import refuse_model
from estimators.derivatives import untrue_derivatives
from estimators.distributed import gathered
from estimators.forwards import Precision
from estimators.objective import LossFunction
from estimators.parameters import left_out
from estimators.samples import first_batches
from estimators.substitution import intact
from estimators.trace import traces_of_blocks
from estimators.user_code import plain_modes
from pruning_limits.bounds import Measured, Negative, QuadraticRise, isotropic_limit, measured_limit, quadratic_limit
from pruning_limits.estimates import Estimates
from pruning_limits.losses import all_losses, drawn_losses
from pruning_limits.magnitude import MagnitudeProfile
from pruning_limits.notes import note_doubles, note_untrue
from pruning_limits.parts import Cost, Estimate, Layer, Sharpness
from pruning_limits.recurrences import Progress
from pruning_limits.removed_directions import removed_directions
from pruning_limits.result import PruningLimit, isotropic, retuned, upper_bound
from pruning_limits.settings import Settings
from pruning_limits.stopping import STOPPING
from pruning_limits.subsamples import Curvature, Subsamples

NOTED_SHARE = 0.1
LOGGER = logging.getLogger("pruning_limits")


def predict_limit(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    penalty: Penalty | None = None,
    epsilon: float | Literal["batch-std"] = "batch-std",
    curvature: Literal["hessian", "ggn"] = "hessian",
    negative: Negative = "abs",
    parameters: str | Sequence[str] | None = None,
    samples: int | None = None,
    tolerance: float = 0.005,
    probes: int | None = None,
    steps: int | None = None,
    measure: bool = True,
    seed: int = 0,
    progress: Progress = None,
    checkpoint: str | Path | None = None,
    precision: Precision = "full",
    max_batches: int | None = None,
    criterion: Literal["loss", "objective"] = "objective",
) -> PruningLimit:
    r"""Predict how far a trained network can be pruned before its training objective rises by epsilon.

    The limit is the root s of :math:`s = \frac1D \operatorname{tr} f_s(H)` with :math:`f_s(x) = c/(c+|x|)` and
    :math:`c = 2\varepsilon/R(s)^2`, where R(s) is the norm of the weights that magnitude pruning removes.

    A chosen parameter that moves the loss otherwise than its gradient says, as behind ``torch.no_grad`` or a
    straight-through estimator, is left out and named in ``notes``.

    Weights that are zero, or masked by ``torch.nn.utils.prune``, count as removed: the limit is a share of all D, at
    least ``already_removed``, and the curvature is that of the other weights.

    Where ``torch.distributed`` is initialised, all ranks call it with the same arguments, share the data and get the
    same limit.

    Args:
        model: Trained network, not wrapped for several devices. It is left bit for bit as it was, and so is the global
            random state.
        loader: Batches of training data, the same samples on every pass and without random augmentation.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch's samples; default
            cross-entropy on ``(x, y)``.
        penalty: ``L1(...)``, ``L2(...)`` or None: the penalty that the network was trained with.
        epsilon: Allowed rise of the objective, > 0; ``"batch-std"`` takes the standard deviation of the mean loss
            of 128 random samples.
        curvature: ``"hessian"`` or ``"ggn"``: which matrix ``sparsity`` is computed with.
        negative: What a negative eigenvalue counts as, ``"abs"`` or ``"clip"`` (to zero).
        parameters: Name patterns of the prunable weights; default the weights of convolution and linear layers, the
            input projections of attention among them.
        samples: Size of the random data sub-sample for curvature products; None doubles it from 1,024 until its
            error is within ``tolerance`` or below that of the steps, or 16,384 samples are reached. With the default
            loss badly fitted samples, which have most of the curvature, are drawn more often and weighted less.
        tolerance: Wanted numerical half-width of the limit, in sparsity.
        probes: Random vectors; None takes 1, and more where their error is beyond ``tolerance`` and that of the steps,
            as in small models, up to 8 and to 1,024 products.
        steps: Lanczos steps; None advances from 16 on until their error is within ``tolerance`` or twice the steps
            narrow it by less than a third, at most to 96; for small models, whose steps are cheap, for as long as it
            takes up to 512. The part of the sub-sample that the Hessian is compared with takes twice as many. With D
            steps or more, and for models of at most 512 weights, the whole matrix is built and its eigenvalues are
            exact.
        measure: Also measure what one-shot magnitude pruning reaches, with forward passes over all data. False passes a
            random draw of 16,384 samples and no more, or ``samples`` if these are more, or as many as 2 GiB hold; the
            interval contains what that may err by. Where it errs by more than 3 % in epsilon over curvature, as with
            losses that few samples dominate, all data are passed once.
        seed: Seed of probes and sub-sample.
        progress: None shows progress bars on a terminal, False none, True always; or a callback
            ``(stage, done, total)``, called on every rank; what it raises stops the prediction.
        checkpoint: File that keeps the state of the recurrences; a run that was stopped continues from it. Of several
            ranks the first one writes it and all read it.
        precision: Of the curvature products: ``"full"`` is that of the model, ``"bfloat16"`` the mixed precision of
            ``torch.autocast`` for a float32 model; the recurrences and all losses keep the model's own. The interval
            does not contain its rounding error, which can exceed it by far, most of all for ``retrained``.
        max_batches: Batches of the loader that are read, the first ones; None reads all. A loader without end needs it.
        criterion: What must not rise by more than epsilon: ``"objective"``, the mean loss plus the penalty, or
            ``"loss"``, the mean loss alone. Removing weights lowers a penalty, and that saving hides a loss of fit.
            With ``"loss"`` curvature, gradient, directions and measured rises are those of the mean loss.

    Returns:
        The limit, its numerical interval, bounds, and everything needed for further questions. Where the GGN says
        nothing of the loss, what rests on it is None, and ``unknown`` tells why.

    Raises:
        UserError: Bad input, told in one line; nothing is changed.
        KeyboardInterrupt: Ctrl-C; the model is left as it was, and ``checkpoint`` serves to continue.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network: a fundamental limit perspective,
    NeurIPS 2024.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> limit = predict_limit(model, data)
        >>> 0 <= limit.lower <= limit.upper <= 1
        True
    """
    asked = Settings(
        criterion=criterion,
        epsilon=epsilon.item() if isinstance(epsilon, Tensor) and epsilon.numel() == 1 else epsilon,
        penalty=None if penalty is None else repr(penalty),
        curvature=curvature,
        negative=negative,
        samples=samples,
        tolerance=tolerance,
        probes=probes,
        steps=steps,
        seed=seed,
        precision=precision,
        max_batches=max_batches,
    )
    refuse_model(model)
    counted = penalty if criterion == "objective" else None
    started = time.perf_counter()
    with plain_modes(), intact(model):
        whole = Objective(model, first_batches(loader, max_batches), loss_fn, counted, parameters)
        profile = MagnitudeProfile(whole.chosen)
        losses = all_losses(whole) if measure else drawn_losses(whole, samples or 0, seed)
        untrue = untrue_derivatives(losses.objective, seed)
        if untrue:
            losses = losses.among([name for name in whole.names if name not in untrue])
            profile = MagnitudeProfile(losses.objective.chosen)
        objective = losses.objective
        kept = profile.vector != 0 if profile.zeros else None
        # With L1 only a note depends on the gradient.
        first = None if isinstance(counted, L1) else objective.losses_and_gradient()
        if first and len(first[0]) != len(losses.values):  # memory ran out and batches were split
            losses = losses.again()
        dense = losses.mean + objective.penalty_value(objective.chosen)
        allowed = losses.epsilon() if asked.epsilon == "batch-std" else asked.epsilon
        settings = replace(asked, parameters=objective.names)
        LOGGER.info("%s weights, objective %.6g, epsilon %.4g", f"{profile.dimension:,}", dense, allowed)
        subsamples = Subsamples(losses, settings, kept)
        estimates = Estimates(subsamples, profile.curve(), allowed, progress, checkpoint)
        part = objective if first is not None else subsamples.subset(STOPPING.pool_samples)
        again, gradient = first or part.losses_and_gradient()
        _check_repeatable(*_comparable(objective, part, losses.values, again))
        if kept is not None:
            gradient *= kept
        hessian = estimates.estimate(curvature)
        flat = subsamples.silence(curvature, hessian.samples)
        if flat and curvature == "ggn":
            raise UserError(f"curvature: {flat}; take curvature='hessian'")
        ggn, unknown = (hessian, "") if curvature == "ggn" else estimates.retuning()
        error = isotropic_limit(hessian.measure, estimates.curve, allowed, negative).standard_error
        sparsity = isotropic(hessian, estimates.curve, allowed, negative)
        directions = retrained = directional = None
        if ggn is not None:
            directions = removed_directions(estimates, ggn, profile, None if isinstance(counted, L1) else gradient)
            retrained, directional = retuned(ggn, directions, estimates.curve, allowed)
        few = min(hessian.samples, STOPPING.diagnostic_samples)
        operator = subsamples.operator(curvature, few if measure else hessian.samples, narrow=True)
        model_rise = QuadraticRise(operator, gradient, profile)
        if measure:
            pool = subsamples.subset(STOPPING.pool_samples)
            measured = measured_limit(objective, profile, allowed, sparsity, dense, pool)
            lower = achieved = max(measured.sparsity, profile.zeros / profile.dimension)
        else:
            lower = quadratic_limit(model_rise, allowed, sparsity)
            measured, achieved = Measured(lower, ()), None
        pull = penalty.gradient(objective.vector()) if penalty is not None and counted is None else None
        notes = _notes(model_rise, sparsity, allowed, pull)
        notes += note_untrue(untrue) + note_doubles(objective)
        if flat:
            notes += (f"the predicted one-shot limit takes weights for free that are not: {flat}",)
        if unknown:
            notes += (f"what re-training reaches and the upper bound are unknown: {unknown}",)
        if parameters is None:
            notes += _uncounted(whole)
        if lower > (bound := upper_bound(directional, 0.0, profile.dimension)):
            how = "measured" if measure else "by the quadratic model"
            notes += (f"one-shot pruning reaches {lower:.2%} ({how}), beyond the upper bound {bound:.2%} of the model",)
        table, trace_error = _layers(subsamples.operator(curvature, few, narrow=True), profile, sparsity, seed)
        for note in notes:
            LOGGER.warning(note)
    half = hessian.half_width(error)
    status = _status(hessian, error, tolerance, losses.total, steps)
    LOGGER.log(logging.INFO if status == "converged" else logging.WARNING, "limit %.4f, %s", sparsity, status)
    spent = gathered((time.perf_counter() - started, _peak_memory(objective.device)))
    masses = np.abs(hessian.measure.nodes) * hessian.measure.weights
    return PruningLimit(
        sparsity=sparsity,
        lower=lower,
        upper=upper_bound(directional, lower, profile.dimension),
        retrained=retrained,
        directional=directional,
        interval=(max(0.0, sparsity - half), min(1.0, sparsity + half)),
        achieved=achieved,
        epsilon=allowed,
        objective=dense,
        parameters=profile.dimension,
        status=status,
        notes=notes,
        sharpness=Sharpness(
            trace=sum(layer.trace for layer in table),
            top_eigenvalue=hessian.measure.largest,
            effective_dimension=profile.dimension * (1 - sparsity),
            negative_share=float(masses[hessian.measure.nodes < 0].sum() / max(masses.sum(), 1e-300)),
            trace_error=trace_error,
        ),
        cost=Cost(
            products=subsamples.products,
            samples=subsamples.samples_seen,
            forward_samples=part.samples + objective.samples + measured.samples,
            seconds=max(seconds for seconds, _ in spent),
            peak_memory=max(memory for _, memory in spent),
        ),
        settings=settings,
        hessian=hessian,
        ggn=ggn,
        curve=estimates.curve,
        directions=directions,
        rises=measured.points,
        already_removed=profile.zeros / profile.dimension,
        objective_error=losses.mean_error,
        unknown=unknown,
        layer_table=tuple(table),
        profile=profile,
    )


def _status(estimate: Estimate, standard_error: float, tolerance: float, total: int, asked: int | None) -> str:
    half = estimate.half_width(standard_error)
    if half <= tolerance:
        return "converged"
    share = tolerance / 2
    samples = min(total, math.ceil(estimate.samples * (estimate.sample_error / share) ** 2))
    probes = math.ceil(estimate.measure.probes * (2 * standard_error / share) ** 2)
    bulk = f"{estimate.steps} steps do not resolve the bulk of the spectrum; "
    if asked is None and estimate.steps < STOPPING.fewest_at_most:
        bulk += f"more would hardly help: accept tolerance={math.ceil(1000 * half) / 1000}, or take curvature='ggn'"
    else:
        bulk += f"try steps={2 * estimate.steps}"
    causes = {
        bulk: estimate.step_error,
        f"{estimate.samples} of {total} samples are too few; try samples={samples}": estimate.sample_error,
        f"the probes disagree; try probes={probes}": 2 * standard_error,
    }
    cause = max(causes, key=lambda one: causes[one])
    return f"unresolved: half-width {half:.4f} exceeds tolerance {tolerance}; {cause}"


def _comparable(objective: Objective, part: Objective, losses: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses of two passes over the same samples, the second of them ``again`` where it can be compared."""
    if part is objective or part.picked is None or part.factors is None:
        return losses, again
    if len(losses) < objective.samples:
        return losses, objective.sample_losses()[0]
    return losses[part.picked] * part.factors, again


def _notes(rise: QuadraticRise, sparsity: float, epsilon: float, pull: Tensor | None) -> tuple[str, ...]:
    """Say where the quadratic model along the removed weights at the limit is not that of a minimum.

    Args:
        rise: Rise of the model of the criterion.
        sparsity: The limit.
        epsilon: Allowed rise.
        pull: Gradient of a penalty that the network was trained with and that the criterion leaves out, ``[D]``; the
            weights are stationary where it balances the gradient of the loss.
    """
    curved, linear, notes = rise.quadratic(sparsity), rise.linear(sparsity), []
    if pull is not None:
        linear -= float(pull.double().dot(rise.removed(sparsity).double()))
    if curved < 0:
        notes.append(
            f"the curvature along the removed weights is negative ({curved:.2g} at {sparsity:.2%}); "
            "the quadratic model does not bound one-shot pruning here"
        )
    if abs(linear) > epsilon:
        notes.append(
            f"the weights are not stationary: the linear term at {sparsity:.2%} is {linear:+.2g}, "
            f"epsilon is {epsilon:.2g}; train longer or state the penalty that it was trained with"
        )
    return tuple(notes)


def _uncounted(objective: Objective) -> tuple[str, ...]:
    """Name the weights in matrices that the default leaves out, where they are more than a tenth of all."""
    others = left_out(objective.model, objective.chosen)
    size = sum(parameter.numel() for parameter in others.values())
    share = size / (size + objective.dimension)
    if share <= NOTED_SHARE:
        return ()
    names = ", ".join(list(others)[:3]) + (", ..." if len(others) > 3 else "")
    return (
        f"{share:.0%} of the weights in matrices are not counted ({names}); name them with parameters= to count them",
    )


def _layers(operator: Curvature, profile: MagnitudeProfile, sparsity: float, seed: int) -> tuple[list[Layer], float]:
    """Describe the layers, and return the standard error of the sum of their traces.

    The traces come from an operator that may leave weights out which only a penalty curves.
    """
    inside = operator.blocks
    blocks = traces_of_blocks(operator, inside, seed=seed)
    weights = zip(profile.masks(sparsity).items(), profile.weights.values(), inside, strict=True)
    table = [
        Layer(
            name=name,
            weights=weight.numel(),
            sparsity=1 - int(mask.sum()) / weight.numel(),
            norm=float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
            trace=float(trace) + operator.outside * (weight.numel() - size),
            trace_error=float(error),
        )
        for ((name, mask), weight, size), trace, error in zip(weights, blocks.values, blocks.errors, strict=True)
    ]
    return table, blocks.whole.standard_error


def _check_repeatable(losses: Tensor, again: Tensor) -> None:
    same = len(again) == len(losses)
    if not same or not torch.allclose(again.sort().values, losses.sort().values, rtol=1e-3, atol=1e-5):
        raise UserError(
            "loader: two passes give different losses; turn off shuffling, sampling with replacement, random "
            "augmentation and dropout so that every pass yields the same samples"
        )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
