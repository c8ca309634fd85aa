"""One training run per network for the tables ``koopman-*``: recorded epochs and the modes of their weights."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from estimators import UserError
from estimators.vectors import flatten
from validation.dmd import Modes, dmd, record_snapshots, recorded_parameters
from validation.masks import select
from validation.pruners import Problem
from validation.pruners.koopman import gradient_mode, magnitude_mode, sizes, trained_further
from validation.studies.limits.early import checkpoints
from validation.tables.storage import load_tensors, run_folder, save_tensors
from validation.tables.suite import Suite
from validation.tables.table import Bench
from validation.training import Course, Network, fresh_network, train


@dataclass(frozen=True)
class KoopmanSettings:
    """How the dynamics of training are recorded and what is pruned by them.

    Args:
        epochs: Epochs of training that are recorded, besides one further epoch of the trained network; a shorter
            recipe takes the same fractions.
        compressions: Compressions c, each at least 1; the sparsity is 1 - 1/c.
        batch_size: Samples per training step of these tables, the learning rate scaled in proportion; a small data set
            needs small batches for many snapshots. None keeps the recipe's.
        measured: Recorded epochs at which the accuracy of pruned networks is measured, as texts, ``"converged"`` among
            them; None for all. Masks are compared at every epoch.
        refined: Recorded epochs whose pruned networks are refined and measured, as ``measured``; None for all.
        branches: Seeds of the networks whose training branches off at every recorded epoch to measure linear mode
            connectivity; None for all.
        share: Fraction in (0, 1] of the paper's numbers of parameters that ``koopman-cost`` decomposes.
        svd_share: The same fraction for the full singular value decomposition, which is slow.
    """

    section: ClassVar[str] = "koopman"

    epochs: tuple[int, ...] = (1, 5, 10, 20)
    compressions: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch_size: int | None = None
    measured: tuple[str, ...] | None = None
    refined: tuple[str, ...] | None = None
    branches: tuple[int, ...] | None = None
    share: float = 1.0
    svd_share: float = 0.125

    def measures(self, label: str) -> bool:
        """Whether the accuracy of pruned networks of a recorded epoch is measured."""
        return self.measured is None or label in self.measured

    def refines(self, label: str) -> bool:
        """Whether pruned networks of a recorded epoch are refined."""
        return self.refined is None or label in self.refined

    def branches_off(self, seed: int) -> bool:
        """Whether training of the networks of a seed branches off."""
        return self.branches is None or seed in self.branches

    def __post_init__(self) -> None:
        if min(self.epochs, default=1) < 1:
            raise UserError(f"koopman: epochs must be at least 1, got {min(self.epochs)}")
        if min(self.compressions, default=0) < 1:
            raise UserError(f"koopman: compressions must be one or more numbers >= 1, got {self.compressions}")
        if self.batch_size == 0:
            raise UserError("koopman: batch_size must be at least 1, got 0")
        if not 0 < min(self.share, self.svd_share) <= max(self.share, self.svd_share) <= 1:
            raise UserError(f"koopman: share and svd_share must be in (0, 1], got {self.share} and {self.svd_share}")


@dataclass(frozen=True)
class Recorded:
    r"""A network at the end of a recorded epoch, and the dynamic modes of its weights over the steps of that epoch.

    Attributes:
        epoch: Epochs of the recipe that were done when the recording ended.
        converged: Whether this is the further epoch after the recipe's last.
        model: The network in evaluation mode.
        fixed: The mode that stays, complex ``[N]``.
        decaying: The largest other mode with a real positive eigenvalue, complex ``[N]``; None where there is none.
        eigenvalues: Eigenvalues, the one nearest 1 first, complex ``[r]``.
        norms: Norms of the scaled modes, ``[r]``.
        rate: Eigenvalue of ``decaying``.
        steps: Number tau of steps.
        error: Largest relative error of a reconstructed snapshot.
        motion: :math:`\max_t \|\theta(t) - \theta(0)\|`.
    """

    epoch: int
    converged: bool
    model: nn.Module
    fixed: Tensor
    decaying: Tensor | None
    eigenvalues: NDArray[np.complex128]
    norms: NDArray[np.float64]
    rate: float | None
    steps: int
    error: float
    motion: float

    @property
    def label(self) -> str:
        """What tables call the checkpoint."""
        return "converged" if self.converged else str(self.epoch)

    @property
    def weights(self) -> Tensor:
        """Recorded weights and biases at the end of the epoch, ``[N]``, on the CPU as the modes are."""
        return flatten(list(recorded_parameters(self.model).values())).cpu()

    def masks(self, compression: float) -> dict[str, Tensor]:
        """Masks of Koopman magnitude pruning at a compression."""
        return select(sizes(self.fixed, self.model), sparsity(compression))


@dataclass(frozen=True)
class Recording:
    """A training run with its recorded epochs.

    Attributes:
        network: The network with the recipe of the run.
        points: Recorded epochs, the converged network last.
        final: The network at the end of the recipe.
        folder: Folder with the training states at the end of every recorded epoch.
    """

    network: Network
    points: tuple[Recorded, ...]
    final: nn.Module
    folder: Path

    @property
    def final_weights(self) -> Tensor:
        """Recorded weights and biases at the end of the recipe, ``[N]``, on the CPU as the modes are."""
        return flatten(list(recorded_parameters(self.final).values())).cpu()

    def state(self, point: Recorded) -> Path:
        """File of weights, momentum and step at the end of a recorded epoch."""
        return self.folder / f"state-{point.epoch}.pt"


def sparsity(compression: float) -> float:
    """Removed fraction 1 - 1/c of a compression c."""
    return 1 - 1 / compression


def recipe_of(network: Network, suite: Suite) -> Network:
    """Return the network with the batch size of the section ``[koopman]`` and its rate scaled in proportion."""
    batch = suite.settings(KoopmanSettings).batch_size
    if batch is None:
        return network
    recipe = network.recipe
    return replace(network, recipe=replace(recipe, batch_size=batch, lr=recipe.lr * batch / recipe.batch_size))


def recording(network: Network, bench: Bench) -> Recording:
    """Return the run of a network, trained and decomposed once for all tables.

    Snapshots lie in a file of float32 until their modes are computed; then the file goes.

    Args:
        network: A network of the suite.
        bench: Settings, data and folders.

    Returns:
        The run with the epochs of ``[koopman]`` and one further epoch at a small constant rate.
    """
    network = recipe_of(network, bench.suite)
    epochs = checkpoints(bench.suite.settings(KoopmanSettings).epochs, network.recipe.epochs)
    settings = {"network": network.settings(), "epochs": epochs}
    folder = run_folder(bench.out, "koopman-run", settings)
    for epoch in epochs[:-1]:
        if not (folder / f"modes-{epoch}.pt").exists():
            _record(network, bench, folder, epoch)
    if not (folder / "modes-converged.pt").exists():
        _record_converged(network, bench, folder)
    final = _model(network, bench, load_tensors(folder / f"state-{epochs[-1]}.pt"))
    points = [_point(network, bench, folder, epoch, False) for epoch in epochs[:-1]]
    points.append(_point(network, bench, folder, epochs[-1], True))
    return Recording(network, tuple(points), final, folder)


def _train(network: Network, bench: Bench, model: nn.Module, epoch: int, state: Path, record: Any = None) -> None:
    steps = epoch * len(bench.data.batches("train", network.recipe.batch_size))
    label = f"{network.model} seed {network.seed}" if bench.progress else None
    recipe, seed = network.recipe, network.seed
    train(model, bench.data, recipe, seed, course=Course(last=steps, state=state, on_step=record, progress=label))


def _record(network: Network, bench: Bench, folder: Path, epoch: int) -> None:
    """Train to the start of an epoch, record that epoch, and leave ``state.pt`` at its end."""
    model = fresh_network(network, bench.data)
    state, during, snapshots = folder / "state.pt", folder / "recording.pt", folder / "snapshots.npy"
    _train(network, bench, model, epoch - 1, state)
    during.unlink(missing_ok=True)
    if state.exists():
        shutil.copyfile(state, during)
    steps = len(bench.data.batches("train", network.recipe.batch_size))
    array, record = record_snapshots(model, steps, snapshots)
    _train(network, bench, model, epoch, during, record)
    shutil.copyfile(during, folder / f"state-{epoch}.pt")
    save_tensors(folder / f"modes-{epoch}.pt", _plain(dmd(array)))
    during.replace(state)
    snapshots.unlink()


def _record_converged(network: Network, bench: Bench, folder: Path) -> None:
    """Train to the end of the recipe and record one further epoch at a small constant rate."""
    model = fresh_network(network, bench.data)
    state, snapshots = folder / "state.pt", folder / "snapshots.npy"
    _train(network, bench, model, network.recipe.epochs, state)
    shutil.copyfile(state, folder / f"state-{network.recipe.epochs}.pt")
    problem = _problem(network, bench, model.eval(), network.recipe.epochs)
    model, modes = trained_further(problem, snapshots)
    save_tensors(folder / "state-converged.pt", {"model": model.state_dict()})
    save_tensors(folder / "modes-converged.pt", _plain(modes))
    state.unlink()
    snapshots.unlink()


def _problem(network: Network, bench: Bench, model: nn.Module, epochs: int) -> Problem:
    return Problem(network.model, bench.data, network.recipe, network.seed, model, epochs)


def refined(network: Network, bench: Bench, point: Recorded, masks: dict[str, Tensor]) -> nn.Module:
    """Return the network of a recorded epoch under masks, after one more epoch at 0.2 of the recipe's peak rate."""
    return _problem(network, bench, point.model, network.recipe.epochs + 1).retrained(masks)


def problem_at(network: Network, bench: Bench, point: Recorded) -> Problem:
    """Return the network of a recorded epoch as a problem for pruners, with no training left."""
    return _problem(network, bench, point.model, network.recipe.epochs)


def _plain(modes: Modes) -> dict[str, Any]:
    """Numbers and the two modes that pruning asks for."""
    try:
        number = gradient_mode(modes)
    except UserError:
        decaying, rate = None, None
    else:
        decaying = torch.from_numpy(modes.mode(number).astype(np.complex64))
        rate = float(modes.eigenvalues[number].real)
    return {
        "fixed": torch.from_numpy(modes.mode(magnitude_mode(modes)).astype(np.complex64)),
        "decaying": decaying,
        "rate": rate,
        "eigenvalues": torch.from_numpy(modes.eigenvalues),
        "norms": torch.from_numpy(modes.norms),
        "steps": len(modes.snapshots) - 1,
        "error": float(modes.errors().max()),
        "motion": modes.motion(),
    }


def _model(network: Network, bench: Bench, state: dict[str, Any]) -> nn.Module:
    model = fresh_network(network, bench.data)
    model.load_state_dict(state["model"])
    return model.eval()


def _point(network: Network, bench: Bench, folder: Path, epoch: int, converged: bool) -> Recorded:
    label = "converged" if converged else str(epoch)
    model = _model(network, bench, load_tensors(folder / f"state-{label}.pt"))
    plain = load_tensors(folder / f"modes-{label}.pt")
    spectrum = {key: plain.pop(key).numpy() for key in ("eigenvalues", "norms")}
    return Recorded(epoch, converged, model, **plain, **spectrum)


def branch(run: Recording, bench: Bench, point: Recorded, seed: int, folder: Path) -> nn.Module:
    """Train the network of a recorded epoch to the end of the recipe on data in another order.

    Args:
        run: The run.
        bench: Data and folders.
        point: Where the branch begins; weights and momentum are taken from there.
        seed: Seed of the data order.
        folder: Folder for the state of training.

    Returns:
        The network at the end, in evaluation mode.
    """
    model, state = copy.deepcopy(point.model), folder / f"branch-{point.epoch}.pt"
    if not state.exists():
        shutil.copyfile(run.state(point), state)
    _train(replace(run.network, seed=seed), bench, model, run.network.recipe.epochs, state)
    return model.eval()
