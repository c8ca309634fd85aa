"""The command ``pruning-limits``: its group, and the commands that need no data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from estimators import UserError
from pruning_limits.gate import Comparison
from pruning_limits.parts import Verdict
from pruning_limits.report import write_report
from pruning_limits.result import PruningLimit

PATH = click.Path(path_type=Path, dir_okay=False)
EXIT_CODES = {"achievable": 0, "open": 3, "infeasible": 4}
INTERRUPTED = 130


class Commands(click.Group):
    """A group whose commands report a failure in one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from None
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise SystemExit(INTERRUPTED) from None
        except (RuntimeError, OSError, MemoryError) as error:  # out of memory, a full disk, an unfit model
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise click.ClickException(f"{type(error).__name__}: {reason}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pruning-limits")
def main() -> None:
    """Predict how far a neural network can be pruned, before anyone prunes it."""


@main.command()
@click.argument("limit_path", metavar="LIMIT", type=PATH)
@click.option("-o", "--out", type=PATH, default=Path("report.html"), show_default=True, help="Page to write, .html.")
def report(limit_path: Path, out: Path) -> None:
    """Write a limit as one web page with sliders, from the JSON file that predict --json wrote."""
    write_report(PruningLimit.from_json(limit_path), out)
    click.echo(f"wrote {out}")


def tell(answer: Verdict | Comparison, as_json: bool) -> None:
    """Print an answer in one line and leave with its exit code: 0 achievable, 3 open, 4 infeasible."""
    click.echo(json.dumps(asdict(answer)) if as_json else f"{answer.status}: {answer.reason}")
    raise SystemExit(EXIT_CODES[answer.status])
