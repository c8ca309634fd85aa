"""The task of a command: a network with its weights, its data, its loss and its penalty."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from estimators import L1, L2, Objective, UserError
from estimators.arguments import refuse_loader
from estimators.distributed import rank, world
from estimators.objective import LossFunction
from pruning_limits.metrics import Metric
from pruning_limits.state_dicts import load_weights
from validation.accuracy import Accuracy, sampled_accuracy
from validation.data import ImageData, load_data
from validation.models import SMALL_FORMS, build_model
from validation.normalisation import SCALED, UNCHANGED, Affine, Normalisation
from validation.pretrained import Pretrained, names_weights
from validation.references import call, resolve

LARGEST_BATCH = 1000


@dataclass(frozen=True)
class Data:
    """Batches to predict with and, where there are some, to measure the accuracy on.

    Attributes:
        text: Where they come from and how images become inputs.
        training: Batches of training data.
        held_out: Batches of other data, or None.
        images: The data set in memory that they are drawn from, or None.
        name: Name of the data set or of the function that returned them.
    """

    text: str
    training: Iterable[Any]
    held_out: Iterable[Any] | None = None
    images: ImageData | None = None
    name: str = ""


@dataclass(frozen=True)
class Task:
    """A network with its name and weights, its data, its loss, and the penalty that it was trained with."""

    name: str

    model: nn.Module
    data: Data
    loss_fn: LossFunction | None
    penalty: L1 | L2 | None

    def objective(self, parameters: Any = None) -> Objective:
        """Return the training objective at the present weights."""
        return Objective(self.model, self.data.training, self.loss_fn, self.penalty, parameters)

    @functools.cached_property
    def accuracy(self) -> Accuracy | None:
        """Accuracy at the weights that the task was loaded with, on held-out data where there are some."""
        batches = self.data.training if self.data.held_out is None else self.data.held_out
        return sampled_accuracy(self.model, batches)

    def metric(self, reference: str | None) -> Metric | None:
        """Return the metric that is named, by default the accuracy of a data set where there is one.

        Args:
            reference: ``accuracy``, a function, or None.

        Raises:
            UserError: There is no such function.
        """
        if reference is None:
            return None if self.data.images is None or self.accuracy is None else "accuracy"
        return "accuracy" if reference == "accuracy" else resolve("metric", reference)

    def text(self) -> str:
        """Say in one line where the data come from, how they are normalised, and the accuracy that results."""
        accuracy = self.accuracy
        if accuracy is None:
            return f"data: {self.data.text}; no accuracy, as these batches hold no labels of the outputs"
        kind = "training" if self.data.held_out is None else "held-out"
        return f"data: {self.data.text}; dense accuracy {accuracy.share:.2%} on {accuracy.samples:,} {kind} samples"


@dataclass(frozen=True)
class TaskOptions:
    """What ``task_options`` give, and of ``allowance_options`` those that name data.

    Attributes:
        model_name: Name or factory of the network.
        model_arguments: Arguments of the factory.
        checkpoint: Trained weights.
        dataset: Images by name or place.
        data_dir: Where data lie.
        data_function: Function that returns loaders.
        data_arguments: Its arguments.
        loss_function: Losses of a batch.
        mean: Mean of the images in [0, 1].
        std: Their standard deviation.
        scale: Images are divided by 255 alone.
        no_normalise: Images stay as they are.
        transforms: Entry of a torchvision enum.
        l1: Coefficient of the L1 penalty.
        l2: Coefficient of the L2 penalty.
        device: Where the network goes.
        held_out_function: Function that returns the held-out loader.
        held_out_arguments: Its arguments.
    """

    model_name: str | None
    model_arguments: dict[str, Any]
    checkpoint: Path | None
    dataset: str | None
    data_dir: Path | None
    data_function: str | None
    data_arguments: dict[str, Any]
    loss_function: str | None
    mean: list[float] | None
    std: list[float] | None
    scale: bool
    no_normalise: bool
    transforms: str | None
    l1: float
    l2: float
    device: str
    held_out_function: str | None = None
    held_out_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def penalty(self) -> L1 | L2 | None:
        """The penalty that the network was trained with."""
        return L1(self.l1) if self.l1 else L2(self.l2) if self.l2 else None


def load_task(options: TaskOptions) -> Task:
    """Load what options name.

    Raises:
        click.UsageError: Options are missing or exclude each other.
        UserError: Something cannot be loaded, or does not fit.
    """
    name = _refuse_clashes(options)
    weights = Pretrained(str(options.checkpoint)) if names_weights(str(options.checkpoint or "")) else None
    if options.dataset is None:
        data = _data_of_function(str(options.data_function), options.data_arguments)
        shape, classes = None, None
    else:
        images = load_data(options.dataset, options.data_dir)
        data = _data_of_images(images, _normalisation(images, options, weights))
        shape, classes = images.shape, images.classes
    if options.held_out_function is not None:
        data = replace(data, held_out=_held_out_loader(options.held_out_function, options.held_out_arguments))
    loss_fn = None if options.loss_function is None else resolve("loss", options.loss_function)
    factory, arguments = name, options.model_arguments
    if weights is not None and ":" not in name:  # some names are also those of networks of this package
        factory, arguments = f"torchvision.models:{name}", {"num_classes": weights.classes} | arguments
    model = build_model(factory, shape, classes, arguments=arguments)
    if ":" in name and data.images is not None and not _ways(options) and weights is None:
        note(
            "images are normalised by their own mean and deviation; where the network was trained otherwise, say so by "
            "--mean and --std, --scale, --no-normalise or --transforms"
        )
    if options.checkpoint is None:
        note("no --checkpoint, so the limit is that of untrained weights")
    else:
        note(_loaded(model, options.checkpoint if weights is None else weights.file, factory))
    try:
        model = model.to(options.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: cannot use {options.device!r}: {str(error).splitlines()[0]}") from None
    return Task(name, model.eval(), data, loss_fn, options.penalty)


def _loaded(model: nn.Module, file: Path, name: str) -> str:
    """Load a checkpoint; one that does not fit a network for small images may be that of torchvision's namesake."""
    try:
        return load_weights(model, file)
    except UserError as error:
        if name in SMALL_FORMS and "does not fit" in str(error):
            raise UserError(
                f"{error}; {name} is the form for small images, torchvision has --model torchvision.models:{name}"
            ) from None
        raise


def _refuse_clashes(options: TaskOptions) -> str:
    """Refuse options that are missing or exclude each other; return the name of the network."""
    sources = _given({"--dataset": options.dataset is not None, "--data": options.data_function is not None})
    missing = [*(["--model"] if options.model_name is None else []), *([] if sources else ["--dataset or --data"])]
    if options.model_name is None or missing:
        raise click.UsageError(f"missing {' and '.join(missing)}")
    ways = _ways(options)
    for excluding in (sources, _given({"--l1": options.l1, "--l2": options.l2}), ways):
        if len(excluding) > 1 and excluding != ["--mean", "--std"]:
            raise click.UsageError(f"{' and '.join(excluding)} cannot be given together")
    if bool(options.mean) is not bool(options.std):
        raise click.UsageError("--mean and --std belong together")
    if options.dataset is None and ways:
        raise click.UsageError(f"{ways[0]} is for --dataset; the function of --data normalises what it returns")
    if options.data_function is None and options.data_arguments:
        raise click.UsageError("--data-arg is for --data")
    if options.held_out_function is None and options.held_out_arguments:
        raise click.UsageError("--held-out-arg is for --held-out")
    return options.model_name


def _ways(options: TaskOptions) -> list[str]:
    """Return the options that say how images become inputs."""
    return _given(
        {"--mean": options.mean, "--std": options.std, "--scale": options.scale}
        | {"--no-normalise": options.no_normalise, "--transforms": options.transforms}
    )


def _given(values: Mapping[str, object]) -> list[str]:
    return [name for name, value in values.items() if value]


def note(text: str) -> None:
    """Tell a remark, once for all ranks."""
    if text and rank() == 0:
        click.echo(f"note: {text}", err=True)


def _normalisation(images: ImageData, options: TaskOptions, weights: Pretrained | None) -> Normalisation:
    if options.mean and options.std:
        return Affine.standardising(options.mean, options.std)
    if options.scale or options.no_normalise:
        return SCALED if options.scale else UNCHANGED
    if options.transforms:
        return Pretrained(options.transforms)
    return images.standardised if weights is None else weights


def _data_of_images(images: ImageData, normalise: Normalisation) -> Data:
    training, held_out = (
        images.batches(split, min(LARGEST_BATCH, -(-len(labels) // world())), normalise=normalise)  # one for every rank
        for split, labels in (("train", images.train_y), ("test", images.test_y))
    )
    text = f"{images.name}, {len(images.train_y):,} training images, {normalise.text}"
    return Data(text, training, held_out, images, images.name)


def _data_of_function(reference: str, arguments: Mapping[str, Any]) -> Data:
    returned = call("data", reference, resolve("data", reference), arguments)
    pair = isinstance(returned, tuple) and len(returned) == 2 and not any(torch.is_tensor(part) for part in returned)
    training, held_out = returned if pair else (returned, None)
    for loader in (training,) if held_out is None else (training, held_out):
        _refuse_returned("data", reference, loader)
    return Data(f"{reference}, as it gives them", training, held_out, name=reference)


def _held_out_loader(reference: str, arguments: Mapping[str, Any]) -> Iterable[Any]:
    loader: Iterable[Any] = call("held-out", reference, resolve("held-out", reference), arguments)
    _refuse_returned("held-out", reference, loader)
    return loader


def _refuse_returned(option: str, reference: str, loader: Any) -> None:
    """Refuse what a function of the user returned where it is no loader, or one that can be read only once."""
    try:
        refuse_loader(loader)
    except UserError as error:
        raise UserError(f"{option}: {reference!r} returned no loader: {error}") from None
    if isinstance(loader, Iterator):
        raise UserError(
            f"{option}: {reference!r} returned a {type(loader).__name__}, which can be read only once; return a "
            "DataLoader or a list of batches"
        )
