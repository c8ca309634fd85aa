"""The command group ``pruning-limits``, which starts without torch, and the command ``report``, which needs no data."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from estimators.errors import UserError

if TYPE_CHECKING:
    from pruning_limits.answers import Verdict
    from pruning_limits.gate import Comparison

PATH = click.Path(path_type=Path, dir_okay=False)
EXIT_CODES = {"achievable": 0, "open": 3, "infeasible": 4}
INTERRUPTED = 130


class Commands(click.Group):
    """A group that imports a command when it is asked for, and reports a failure in one line, not a traceback."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.later: dict[str, tuple[str, str]] = {}

    def add_later(self, name: str, module: str, summary: str) -> None:
        """Add a command by the module that defines it under the same name, and its first line of help."""
        self.later[name] = module, summary

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self.later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, imported now."""
        if cmd_name not in self.later:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(self.later[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their first lines of help, without importing them."""
        summaries = {name: command.get_short_help_str(formatter.width) for name, command in self.commands.items()}
        summaries |= {name: summary for name, (_, summary) in self.later.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(summaries.items()))

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
    from estimators.files import refuse_unwritable
    from pruning_limits.report import SUFFIXES, write_report
    from pruning_limits.result import PruningLimit

    refuse_unwritable(out, SUFFIXES)
    write_report(PruningLimit.from_json(limit_path), out)
    click.echo(f"wrote {out}")


def tell(answer: Verdict | Comparison, as_json: bool) -> None:
    """Print an answer in one line and leave with its exit code: 0 achievable, 3 open, 4 infeasible."""
    click.echo(json.dumps(asdict(answer)) if as_json else f"{answer.status}: {answer.reason}")
    raise SystemExit(EXIT_CODES[answer.status])
