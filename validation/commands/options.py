"""Options that name a network, its data and what must not get worse; importing them needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from estimators.errors import UserError
from pruning_limits.cli import PATH
from pruning_limits.settings import LARGEST_SEED
from validation.references import parsed_arguments

Kind = TypeVar("Kind")
FUNCTION = "path.py:function or package.module:function"


def _pairs(context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    try:
        return parsed_arguments(pairs)
    except UserError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _function(context: click.Context, parameter: click.Parameter, reference: str | None) -> str | None:
    if reference is not None and ":" not in reference:
        raise click.BadParameter(f"expected {FUNCTION}, got {reference!r}", context, parameter)
    return reference


def _metric(context: click.Context, parameter: click.Parameter, reference: str | None) -> str | None:
    if reference is not None and reference != "accuracy" and ":" not in reference:
        raise click.BadParameter(f"expected accuracy or {FUNCTION}, got {reference!r}", context, parameter)
    return reference


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers, a comma between two, got {text!r}", context, parameter) from None


def taken(kind: type[Kind], options: dict[str, Any]) -> Kind:
    """Take the options that are fields of a dataclass out of all options, and return them as one.

    Args:
        kind: A dataclass; a field without an option has its default.
        options: All options by name; those of the dataclass are removed.

    Example:
        >>> from dataclasses import make_dataclass
        >>> options = {"seed": 1, "steps": 2}
        >>> taken(make_dataclass("Seeds", ["seed"]), options), options
        (Seeds(seed=1), {'steps': 2})
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names if name in options})


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``task.load_task`` takes, and those of the numerics."""
    options = [
        click.option(
            "--model",
            "model_name",
            help="fc5, resnet20 or another of this package, a torchvision name, path.py:factory or "
            "package.module:factory. A factory gets the arguments of --model-arg, and the data set's shape and number "
            "of classes if it has parameters named shape and classes.",
        ),
        click.option(
            "--model-arg",
            "model_arguments",
            multiple=True,
            callback=_pairs,
            metavar="KEY=VALUE",
            help="For the factory; repeat it. A value is read as a Python literal where it is one, else as text.",
        ),
        click.option(
            "--checkpoint",
            "--weights",
            "checkpoint",
            type=PATH,
            help="Trained weights: a checkpoint of plain tensors (.pt, .pth), .safetensors, or an entry of a "
            "torchvision enum such as ResNet18_Weights.IMAGENET1K_V1 whose file torchvision has downloaded before.",
        ),
        click.option("--dataset", help="digits, mnist, fashion-mnist, cifar10, cifar100, a folder, archive or .npz"),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where data lie (or the variable PRUNING_LIMITS_DATA)."
        ),
        click.option(
            "--data",
            "data_function",
            callback=_function,
            help=f"{FUNCTION}, which returns a loader of batches, or a pair of training and held-out loader. For "
            "CSV, text and all that --dataset does not read.",
        ),
        click.option(
            "--data-arg",
            "data_arguments",
            multiple=True,
            callback=_pairs,
            metavar="KEY=VALUE",
            help="For that function, likewise.",
        ),
        click.option(
            "--loss",
            "loss_function",
            callback=_function,
            help=f"{FUNCTION} (model, batch) -> losses; default cross-entropy on (x, y).",
        ),
        click.option(
            "--mean",
            callback=_numbers,
            metavar="NUMBERS",
            help="Mean of --dataset images in [0, 1], one value or one per channel: 0.485,0.456,0.406",
        ),
        click.option(
            "--std",
            callback=_numbers,
            metavar="NUMBERS",
            help="Their standard deviation, likewise; both default to the training images' own.",
        ),
        click.option("--scale", is_flag=True, help="Only divide --dataset images by 255."),
        click.option("--no-normalise", is_flag=True, help="Give --dataset images as they are, 0 to 255."),
        click.option("--transforms", help="Apply the transforms of a torchvision enum to --dataset images."),
        click.option("--l1", type=float, default=0.0, help="L1 coefficient that the network was trained with."),
        click.option("--l2", type=float, default=0.0, help="L2 coefficient (weight decay) that it was trained with."),
        click.option("--samples", type=int, help="Data sub-sample for curvature products; default adaptive."),
        click.option("--steps", type=int, help="Lanczos steps; default adaptive."),
        click.option("--probes", type=int, help="Probe vectors; default by size."),
        click.option("--seed", type=click.IntRange(0, LARGEST_SEED - 1), default=0, show_default=True),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ..."),
    ]
    return _with(options, command)


def allowance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a prediction that say what must not get worse, and by how much."""
    options = [
        click.option(
            "--criterion",
            type=click.Choice(["loss", "objective"]),
            show_default="loss",
            help="What must not rise: the mean loss, or the objective, which is the loss plus the penalty of --l1 or "
            "--l2.",
        ),
        click.option(
            "--metric",
            callback=_metric,
            help=f"accuracy, or {FUNCTION} (model, batch) -> one value per sample, larger is better; default accuracy "
            "for --dataset.",
        ),
        click.option("--max-drop", type=float, help="Allowed fall of the mean metric, such as 0.005."),
        click.option(
            "--held-out",
            "held_out_function",
            callback=_function,
            help=f"{FUNCTION}, which returns a loader that the metric is measured on; default the test part of "
            "--dataset, or the second loader of --data, else the training data.",
        ),
        click.option(
            "--held-out-arg",
            "held_out_arguments",
            multiple=True,
            callback=_pairs,
            metavar="KEY=VALUE",
            help="For that function, as --data-arg.",
        ),
    ]
    return _with(options, command)


def _with(options: list[Callable[[Any], Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
