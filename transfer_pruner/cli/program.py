"""The program that all commands are part of: how it lists them, prints what they found, and fails.

It must hold that ``--help`` loads nothing heavy; that every error is one line that says what to do,
with exit code 1, or 2 where the command was given wrongly; and that with ``--json`` stdout holds
one JSON document and nothing else.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from transfer_pruner._version import __version__

if TYPE_CHECKING:
    from rich.table import Table

_IN_ORDER_OF_USE = (
    *("embed", "score", "next", "harvest", "fit", "rank"),
    *("explain", "report", "sync", "doctor"),
)
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_EPILOG = """\b
A first rule, from single-task models and a search that has run:
  transfer-pruner embed --models models/ --data texts.csv --out embeddings/
  transfer-pruner harvest --storage sqlite:///study.db --study NAME --out transfers.csv
  transfer-pruner fit --embeddings embeddings/ --transfers transfers.csv --top-k 3 --out rule/

\b
The pairs to train next, before any search and as transfers are measured:
  transfer-pruner score --models models/ --data dev.csv --out scores.csv
  transfer-pruner next --embeddings embeddings/ --scores scores.csv --transfers transfers.csv

\b
Exit codes: 0 fine, 1 error, 2 wrong usage. Every command takes --json.

\b
Shell completion (bash; or zsh, fish), for the shell's start-up file:
  eval "$(_TRANSFER_PRUNER_COMPLETE=bash_source transfer-pruner)"
"""


class _Commands(click.Group):
    """Turns errors and warnings into one line each; lists commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.commands, key=_IN_ORDER_OF_USE.index)

    def invoke(self, ctx: click.Context) -> Any:
        # Restores showwarning too.
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                command = error.ctx.command_path if error.ctx else ctx.command_path
                message = error.format_message()
                end = "" if message.endswith((".", "?")) else "."
                raise click.UsageError(f"{message}{end} See '{command} --help'.") from error
            except BrokenPipeError:
                # A reader such as head had enough: click ends quietly.
                raise
            except (ValueError, OSError, ImportError, KeyError) as error:
                from transfer_pruner.files import one_line

                raise click.ClickException(one_line(error)) from error


@click.group(cls=_Commands, context_settings=_HELP, epilog=_EPILOG)
@click.version_option(__version__)
def main() -> None:
    """Eliminate unpromising (source task, target task) pairs before they train."""


def command(*examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Add a command to the command line, with examples at the end of its help."""
    lines = "\n".join(f"  {example}" for example in examples)
    return main.command(epilog=f"\b\nExample{'s' * (len(examples) > 1)}:\n{lines}")


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes
    ----------
    data : mapping
        For machines.
    text : sequence of str or rich Table
        For people; by line.
    exit_code : int
    """

    data: Mapping[str, Any]
    text: Sequence[str | Table]
    exit_code: int = 0


def answers(function: Callable[..., Answer]) -> Callable[..., None]:
    """Print what a command returns, for people or, with ``--json``, for machines."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, and only that.")
    @functools.wraps(function)
    def run(as_json: bool, **options: Any) -> None:
        # What libraries print on the way must not get between a reader and the JSON.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            answer = function(**options)
        if as_json:
            click.echo(json.dumps(_plain(answer.data), allow_nan=False))
        else:
            for part in answer.text:
                if isinstance(part, str):
                    click.echo(part)
                else:
                    from rich.console import Console

                    Console().print(part)
        if answer.exit_code:
            click.get_current_context().exit(answer.exit_code)

    return run


def terminal_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], numbers: Sequence[str]
) -> Table:
    """Make a table for the terminal: numbers to the right, names of tasks as they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        # Text: a task may be called [red].
        table.add_row(*(Text(str(row[name])) for name in columns))
    return table


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Say which extra to install for what cannot be imported."""
    try:
        yield
    except ImportError as error:
        fail(f"{what} needs {extra}: pip install 'transfer-pruner[{extra}]' ({error}).")


def fail(message: str) -> NoReturn:
    """Stop with one line and exit code 1."""
    raise click.ClickException(" ".join(message.split()))


def note(message: str) -> None:
    """Tell something beside the result, on stderr."""
    click.echo(message, err=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    note(f"warning: {' '.join(str(message).split())}")


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows; NaN and infinity into null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
