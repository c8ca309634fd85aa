"""What a table of the validation is made of: cells, a bench they run on, and a way to write the rows."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

import validation.studies
from estimators import UserError
from pruning_limits import PruningLimit, predict_limit
from validation.data import ImageData
from validation.studies.limits.actual import Trial, retrained
from validation.tables.storage import read_json, run_folder, write_json
from validation.tables.suite import Suite
from validation.tables.writing import Row
from validation.training import Network, trained_network

Value = TypeVar("Value")


@dataclass(frozen=True)
class Cell:
    """One unit of work: a network, and what is done to it.

    Attributes:
        start: The trained network that the cell starts from; None in a table that has none.
        part: Further coordinates as plain values, such as a pruner and a sparsity.
    """

    start: Network | None
    part: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def network(self) -> Network:
        """The trained network that the cell starts from."""
        return _present(self.start)


@dataclass(frozen=True)
class Bench:
    """What a cell works with.

    Attributes:
        suite: Settings shared by all cells.
        images: The network's data set; None in a table without networks.
        out: Folder of all runs.
        folder: Folder of this cell.
        progress: Show progress bars.
    """

    suite: Suite
    images: ImageData | None
    out: Path
    folder: Path
    progress: bool

    @property
    def data(self) -> ImageData:
        """The network's data set."""
        return _present(self.images)

    def model(self, network: Network) -> nn.Module:
        """Return the trained network, trained once for all tables."""
        return trained_network(network, self.data, self.out, self.progress)

    def limit(self, network: Network) -> PruningLimit:
        """Return the network's limit with the suite's settings, predicted once for all tables.

        Raises:
            UserError: The stored limit is damaged or of another version of this package.
        """
        settings = {"network": network.settings(), "limit": asdict(self.suite.limit)}
        folder = run_folder(self.out, "limit", settings)
        if not (folder / "limit.json").exists():
            limit = predict_limit(
                self.model(network),
                self.data.batches("train", 1000),
                penalty=network.recipe.penalty,
                criterion="objective",
                seed=network.seed,
                progress=None if self.progress else False,
                checkpoint=folder / "spectra.pt",
                **asdict(self.suite.limit),
            )
            limit.to_json(folder / "limit.json")
            (folder / "spectra.pt").unlink(missing_ok=True)
        try:
            return PruningLimit.from_json(folder / "limit.json")
        except UserError as error:
            raise UserError(f"{error}; results are not mixed: delete {folder}, or start afresh with --out") from None

    def retrained(self, network: Network, sparsity: float) -> Trial:
        """Return what re-training at a sparsity makes of the network, trained once for all tables."""
        settings = self.suite.retrain
        budget = {"epochs": settings.epochs, "lr_factor": settings.lr_factor}
        named = {"network": network.settings(), "retrain": budget, "sparsity": sparsity}
        file = run_folder(self.out, "retrained", named) / "trial.json"
        found: Trial | None = read_json(file)
        if found is None:
            found = retrained(self.model(network), self.data, network.recipe, network.seed, sparsity, settings)
            write_json(file, found)
        return found


def _present(value: Value | None) -> Value:
    if value is None:
        raise TypeError("a cell without a network has neither network nor data")
    return value


def one_cell_per_network(suite: Suite) -> list[Cell]:
    """Return the cells of a table that asks one thing of every network."""
    return [Cell(network) for network in suite.networks]


@dataclass(frozen=True)
class Table:
    """A table of the validation.

    Attributes:
        name: What ``--table`` calls it.
        settings: The suite's settings that a cell's result depends on, as plain values.
        run: Computes the row of a cell.
        write: Writes rows, in the order of the cells, to a folder; the last argument is the command to note.
        cells: The cells of a suite.
        limits: Whether cells use the networks' limits, which are then predicted first.
        rows_of: Name of another table whose cells these are, when they are the same.
    """

    name: str
    settings: Callable[[Suite], dict[str, Any]]
    run: Callable[[Cell, Bench], Row]
    write: Callable[[Sequence[Row], Suite, Path, str], None]
    cells: Callable[[Suite], list[Cell]] = one_cell_per_network
    limits: bool = True
    rows_of: str | None = None


def tables() -> dict[str, Table]:
    """Every table by name: each module of a study may define one as ``TABLE``."""
    found = {}
    for module in pkgutil.walk_packages(validation.studies.__path__, "validation.studies."):
        table = getattr(importlib.import_module(module.name), "TABLE", None)
        if table is not None:
            found[table.name] = table
    return dict(sorted(found.items()))
