"""Predict the pruning limit of a trained model from the model and its data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from estimators import Penalty
from estimators.arguments import plain_model
from estimators.files import path_of, refuse_unwritable
from estimators.forwards import Precision
from estimators.objective import LossFunction
from estimators.substitution import intact
from estimators.user_code import plain_modes
from pruning_limits.dense_network import Subject
from pruning_limits.evidence import solve
from pruning_limits.forecast import Forecast
from pruning_limits.gathering import gather
from pruning_limits.isotropic import Negative
from pruning_limits.metrics import Metric, metric_loss, metric_name
from pruning_limits.pattern_names import UNSTRUCTURED, pattern_names
from pruning_limits.progress import Progress, refuse_progress
from pruning_limits.result import PruningLimit
from pruning_limits.settings import CROSS_ENTROPY, OWN_LOSS, Retuning, Settings

LOGGER = logging.getLogger("pruning_limits")


def predict_limit(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    held_out: Iterable[Any] | None = None,
    criterion: Literal["loss", "objective"] = "loss",
    epsilon: float | Literal["batch-std"] = "batch-std",
    penalty: Penalty | None = None,
    retune: bool | Retuning = False,
    curvature: Literal["hessian", "ggn"] = "hessian",
    negative: Negative = "abs",
    parameters: str | Sequence[str] | None = None,
    samples: int | None = None,
    probes: int | None = None,
    steps: int | None = None,
    tolerance: float = 0.005,
    max_batches: int | None = None,
    measure: bool = True,
    pattern: str | Sequence[str] = UNSTRUCTURED,
    seed: int = 0,
    progress: Progress = None,
    checkpoint: str | Path | None = None,
    precision: Precision = "full",
    budget: float | None = None,
    forecast: str | Path | None = None,
) -> PruningLimit:
    r"""Answer how far a trained network can be pruned: alone, with re-training, and at most.

    Pruning alone is measured. The other answers come from the spectrum of the Hessian. The paper's formula is the root
    s of :math:`s = \frac1D \operatorname{tr} f_s(H)` with :math:`f_s(x) = c/(c+|x|)` and
    :math:`c = 2\varepsilon/R(s)^2`, where R(s) is the norm of the weights that magnitude pruning removes.

    A chosen parameter that moves the loss otherwise than its gradient says, as behind ``torch.no_grad`` or a
    straight-through estimator, is left out and named in ``notes``.

    Weights that are zero, or masked by ``torch.nn.utils.prune``, count as removed: the limit is a share of all D, at
    least ``already_removed``, and the curvature is that of the other weights.

    Where ``torch.distributed`` is initialised, all ranks call it with the same arguments, share the data and get the
    same limit.

    Args:
        model: Trained network; of ``DistributedDataParallel`` the module inside is taken. It is left bit for bit as it
            was, and so is the global random state.
        loader: Batches of training data, the same samples on every pass and without random augmentation.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch's samples; default
            cross-entropy on ``(x, y)``.
        metric: What the user cares for: ``"accuracy"`` of class, pixel or multi-label outputs, or a function
            ``(model, batch) -> values`` ``[n]`` per sample, larger is better. It is measured wherever pruned networks
            are.
        max_drop: Allowed fall of the mean metric, > 0, such as 0.005. The metric then decides how far pruning alone
            gets, and epsilon is the rise of the criterion at which one-shot pruned networks have lost that much.
        held_out: Batches that the metric is measured on; None takes the training data.
        criterion: What must not rise by more than epsilon: ``"loss"``, the mean loss of the data, or ``"objective"``,
            the mean loss plus the penalty. Removing weights lowers a penalty, and that saving hides a loss of fit.
            Curvature, gradient, directions and measured rises are those of the criterion.
        epsilon: Allowed rise of the criterion, > 0, where no ``max_drop`` is given; ``"batch-std"`` takes the standard
            deviation of the mean loss of 128 random samples.
        penalty: ``L1(...)``, ``L2(...)`` or None: the penalty that the network was trained with. With the criterion
            ``"loss"`` it tells only whether the weights are stationary.
        retune: Also measure how far pruning gets when the kept weights are re-tuned: masks raised in stages, brief
            fine-tuning on 2,048 samples a stage, for at most half of the ``budget``, or for one stage. The model itself
            is not trained. ``Retuning(...)`` takes other numbers of samples, passes, runs and epochs.
        curvature: ``"hessian"`` or ``"ggn"``: which matrix ``sparsity`` is computed with.
        negative: What a negative eigenvalue counts as, ``"abs"`` or ``"clip"`` (to zero).
        parameters: Name patterns of the prunable weights; default the weights of convolution and linear layers, the
            input projections of attention among them.
        samples: Size of the random data sub-sample for curvature products; None takes what ``budget`` allows, at least
            64 and at most 16,384 samples, or all where these are at most 1.5 times as many. With the default loss
            badly fitted samples, which have most of the curvature, are drawn more often and weighted less.
        probes: Random vectors; None takes 1, and more where their error is beyond ``tolerance`` and that of the steps,
            as in small models, up to 8 and to 256 products.
        steps: Lanczos steps; None takes 24 of the GGN and 48 of the Hessian, and more while their error counts beside
            ``tolerance`` and twice the steps narrow it by more than a third, at most 96, and on a sub-sample 40 and 48;
            for small models, whose steps are cheap, for as long as it takes up to 256. With D steps or more, and for
            models of at most 512 weights, the whole matrix is built and its eigenvalues are exact.
        tolerance: Wanted numerical half-width of the limit, in sparsity.
        max_batches: Batches of the loader that are read, the first ones; None reads all. A loader without end needs it.
        measure: Measure what one-shot magnitude pruning reaches, with forward passes over the data: on a grid of
            sparsities, whose first that fails is narrowed down; a draw of the data decides a point where it can with
            certainty, all data decide at the end. False passes a random draw of 16,384 samples and no more, or
            ``samples`` if these are more, or as many as 2 GiB hold; the interval contains what that may err by. Where
            it errs by more than 3 % in epsilon over curvature, as with losses that few samples dominate, all data are
            passed once.
        pattern: Which weights go together: ``"unstructured"`` single ones, ``"2:4"`` or another N:M along the inputs,
            ``"blocks:16x1"`` outputs by inputs, ``"channels"``, ``"heads"``; or several of them. One-shot pruning is
            measured in each, and re-tuning where it is asked for; the formulas take its R and no further product. The
            limit of the first is returned, ``for_pattern`` gives the others. What is allowed comes from single weights.
        seed: Seed of probes and sub-sample.
        progress: None shows progress bars on a terminal, False none, True always; or a callback
            ``(stage, done, total)``, called on every rank; what it raises stops the prediction.
        checkpoint: File that keeps the state of the recurrences; a run that was stopped continues from it. Of several
            ranks the first one writes it and all read it.
        precision: Of the curvature products: ``"full"`` is that of the model, ``"bfloat16"`` the mixed precision of
            ``torch.autocast`` for a float32 model; the recurrences and all losses keep the model's own. The interval
            does not contain its rounding error, which can exceed it by far, most of all for ``retrained``.
        budget: What the prediction may cost, in epochs of training; one epoch counts as three forward passes over the
            loader. None means one epoch, or some ten seconds of one core where an epoch is less. Parts come in the
            order one-shot, re-trained, bound, formula; re-tuning comes on top. Below one epoch the losses, too, are
            those of a draw. Small budgets are exceeded, and so is one epoch of some ten thousand samples, because every
            part takes a least number of them; ``limit.cost.epochs`` tells.
        forecast: Calibration of the rung ``"re-trained"``, a file that ``pruning-limits validate --table forecast``
            wrote on networks of the user's own; None takes the one of this package.

    Returns:
        One answer per rung, and everything needed for further questions. Where the GGN says nothing of the loss, what
        rests on it is None, and the answers tell why.

    Raises:
        UserError: Bad input, told in one line; nothing is changed.
        KeyboardInterrupt: Ctrl-C; the model is left as it was, and ``checkpoint`` serves to continue. While networks
            are re-tuned it ends that instead: the limit comes back with what was measured before, and a note.

    Source: Zhang, Zhang, Sun and Liu, How sparse can we prune a deep network: a fundamental limit perspective,
    NeurIPS 2024.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> data = [(torch.randn(64, 4), torch.randint(0, 2, (64,)))]
        >>> limit = predict_limit(model, data)
        >>> 0 <= limit.lower <= limit.upper <= 1
        True
    """
    asked = Settings(
        criterion=criterion,
        epsilon=epsilon.item() if isinstance(epsilon, Tensor) and epsilon.numel() == 1 else epsilon,
        metric=None if metric is None else metric_name(metric),
        max_drop=max_drop,
        held_out=held_out is not None,
        penalty=None if penalty is None else repr(penalty),
        measure=measure,
        curvature=curvature,
        negative=negative,
        samples=samples,
        tolerance=tolerance,
        probes=probes,
        steps=steps,
        seed=seed,
        precision=precision,
        max_batches=max_batches,
        pattern=pattern_names(pattern),
        retune=Retuning() if retune is True else None if retune is False else retune,
        budget=budget,
        loss=CROSS_ENTROPY if loss_fn is None else OWN_LOSS,
    )
    refuse_progress(progress)
    if checkpoint is not None:
        refuse_unwritable(path_of("checkpoint", checkpoint))
    calibration = Forecast.shipped() if forecast is None else Forecast.read(forecast)
    model = plain_model(model)
    values = None if metric is None else metric_loss(metric)
    subject = Subject(model, loader, loss_fn, penalty, parameters, values, held_out)
    with plain_modes(), intact(model):
        gathered = gather(subject, asked, progress, checkpoint)
    evidence = replace(gathered.evidence, forecast=calibration)
    limit = solve(evidence, gathered.settings, gathered.allowed, gathered.profile)
    limit = limit.for_pattern(gathered.settings.pattern[0])
    for note in limit.notes:
        LOGGER.warning(note)
    converged = limit.answer("formula").status == "converged"
    LOGGER.log(logging.INFO if converged else logging.WARNING, "limit %.4f, %s", limit.lower, limit.status)
    return limit
