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
from pruning_limits.held_out import held_out_batches, refuse_changing
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

    Some parameters change the loss differently than their gradient says, as behind ``torch.no_grad`` or a
    straight-through estimator. Such parameters are left out and named in ``notes``.

    Weights that are zero, or masked by ``torch.nn.utils.prune``, count as removed. The limit is a share of all D
    weights and at least ``evidence.already_removed``. The curvature is that of the other weights.

    Where ``torch.distributed`` is initialised, all ranks must call this function with the same arguments. They share
    the data and get the same limit.

    Args:
        model: Trained network; if it is wrapped in ``DistributedDataParallel``, the module inside is used. The network
            and the global random state are left bit for bit as they were.
        loader: Batches of training data, the same samples on every pass and without random augmentation.
        loss_fn: ``(model, batch) -> losses``, per sample ``[n]`` or the scalar mean over the batch's samples; default
            cross-entropy on ``(x, y)``.
        metric: The quantity that the user wants to keep: ``"accuracy"`` of class, pixel or multi-label outputs, or a
            function ``(model, batch) -> values`` ``[n]`` per sample, larger is better. It is measured on every pruned
            network.
        max_drop: Allowed fall of the mean metric, > 0, such as 0.005. The metric then decides how far pruning alone
            gets, and epsilon is the rise of the criterion at which one-shot pruned networks have lost that much.
        held_out: Batches that the metric is measured on, and nothing else; None takes the training data.
        criterion: What must not rise by more than epsilon: ``"loss"``, the mean loss of the data, or ``"objective"``,
            the mean loss plus the penalty. Removing weights lowers the penalty, which can hide a loss of fit.
            Curvature, gradient, directions and measured rises are those of the criterion.
        epsilon: Allowed rise of the criterion, > 0, where no ``max_drop`` is given; ``"batch-std"`` takes the standard
            deviation of the mean loss of 128 random samples.
        penalty: ``L1(...)``, ``L2(...)`` or None: the penalty that the network was trained with. With the criterion
            ``"loss"`` the penalty serves only to tell whether the weights are stationary.
        retune: Also measure how far pruning gets when the kept weights are re-tuned. A copy of the model is pruned in
            stages, with brief fine-tuning on 2,048 samples a stage. This costs at most half of the ``budget``, or one
            stage. The model itself is not trained. ``Retuning(...)`` sets other numbers of samples, passes, runs and
            epochs.
        curvature: ``"hessian"`` or ``"ggn"``: which matrix ``sparsity`` is computed with.
        negative: How a negative eigenvalue counts: by its absolute value (``"abs"``) or as zero (``"clip"``).
        parameters: Name patterns of the prunable weights; default the weights of convolution and linear layers,
            including the input projections of attention.
        samples: Size of the random data sub-sample for curvature products. None takes as many as ``budget`` allows, at
            least 64 and at most 16,384 samples, or all data if they are at most 1.5 times as many. With the default
            loss, badly fitted samples are drawn more often and weighted less, because they have most of the curvature.
        probes: Number of random vectors. None takes 1, and more while their error exceeds both ``tolerance`` and the
            error of the steps, as in small models: at most 8 vectors and 256 products.
        steps: Lanczos steps. None takes 24 for the GGN and 48 for the Hessian. It takes more while their error counts
            next to ``tolerance`` and doubling the steps narrows the error by more than a third: at most 96, and on a
            sub-sample at most 40 and 48. Small models, whose steps are cheap, take as many as they need, at most 256.
            With D steps or more, and for models of at most 512 weights, the whole matrix is built and its eigenvalues
            are exact.
        tolerance: Wanted numerical half-width of the limit, in sparsity.
        max_batches: Number of batches that are read from the beginning of the loader, and of a ``held_out`` that tells
            no length; None reads all. A loader without end needs this argument.
        measure: Measure what one-shot magnitude pruning reaches, by forward passes over the data. The search narrows
            down the first sparsity of a grid that fails. A random draw of the data decides a sparsity where it can do
            so with certainty; all data decide at the end. False measures no pruned network and passes only a draw:
            16,384 samples, or as many as 2 GiB hold, but at least ``samples``. The interval then includes the error of
            the draw. Where that error exceeds 3 % in epsilon over curvature, as with losses that few samples dominate,
            all data are passed once.
        pattern: Which weights are removed together: ``"unstructured"`` (single weights), ``"2:4"`` or another N:M along
            the inputs, ``"blocks:16x1"`` (outputs by inputs), ``"channels"``, ``"heads"``; or several of these.
            One-shot pruning is measured in each pattern, and re-tuning if ``retune`` asks for it. The formulas use the
            R of the pattern and need no further product. The function returns the limit of the first pattern;
            ``for_pattern`` gives the others. The allowed rise comes from pruning single weights.
        seed: Seed of probes and sub-sample.
        progress: None shows progress bars on a terminal, False shows none, True always shows them. Or a callback
            ``(stage, done, total)``, called on every rank; an exception that it raises stops the prediction.
        checkpoint: File that keeps the state of the recurrences; a run that was stopped continues from it. With several
            ranks, the first rank writes the file and all ranks read it.
        precision: Precision of the curvature products: ``"full"`` is the precision of the model, ``"bfloat16"`` the
            mixed precision of ``torch.autocast`` for a float32 model. The recurrences and all losses keep the model's
            precision. The interval does not include the rounding error of bfloat16, which can be far wider, most of all
            for ``retrained``.
        budget: Cost that the prediction may have, in epochs of training; one epoch counts as three forward passes over
            the loader. None means one epoch, or some ten seconds of one core if an epoch is shorter. The budget is
            spent in the order one-shot, re-trained, bound, formula; re-tuning comes on top. With a budget below one
            epoch the losses are also those of a draw. Every part takes a least number of samples, so small budgets are
            exceeded, and so is one epoch of some ten thousand samples. ``limit.cost.epochs`` is the actual cost.
        forecast: Calibration of the rung ``"re-trained"``: a file that ``pruning-limits validate --table forecast``
            wrote for the user's own networks. None takes the calibration of this package.

    Returns:
        One answer per rung, and everything needed for further questions. If the GGN gives no information about the
        loss, the numbers that need it are None, and the answers say why.

    Raises:
        UserError: Bad input, told in one line; nothing is changed.
        KeyboardInterrupt: Ctrl-C; the model is left as it was, and a new call can continue from ``checkpoint``. During
            re-tuning, Ctrl-C ends only the re-tuning: the function returns the limit with the results so far and a
            note.

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
    held_out = held_out_batches(held_out, metric is not None, max_batches)
    subject = Subject(model, loader, loss_fn, penalty, parameters, values, held_out)
    with plain_modes(), intact(model):
        refuse_changing(subject)
        gathered = gather(subject, asked, progress, checkpoint)
    evidence = replace(gathered.evidence, forecast=calibration)
    limit = solve(evidence, gathered.settings, gathered.allowed, gathered.profile)
    limit = limit.for_pattern(gathered.settings.pattern[0])
    for note in limit.notes:
        LOGGER.warning(note)
    converged = limit.answer("formula").status == "converged"
    LOGGER.log(logging.INFO if converged else logging.WARNING, "limit %.4f, %s", limit.lower, limit.status)
    return limit
