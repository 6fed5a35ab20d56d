"""The program `bigtrain`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from bigtrain.base import (
    CRASHED,
    DONE,
    BigtrainError,
    __version__,
    check_faults,
    disk_error,
    in_utf8,
    keep_streams,
    known_user,
    launcher_pid,
    report_end,
    shows_tracebacks,
    text_of,
)
from bigtrain.cli import (
    checkpoint_commands,
    compress_command,
    config_commands,
    data_commands,
    doctor_command,
    ladder_command,
    plan_command,
    run_commands,
    submit_commands,
)
from bigtrain.cli.printing import TakesOverrides, say
from bigtrain.config import without_secrets

app = typer.Typer(
    name="bigtrain",
    help="Distributed pre-training of large language models: raw text in, a model that other tools load out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=TakesOverrides)(run_commands.train)
app.command("plan", cls=TakesOverrides)(plan_command.plan)
app.command("doctor", cls=TakesOverrides)(doctor_command.doctor)
app.command("profile", cls=TakesOverrides)(run_commands.profile)
app.command("ladder", cls=TakesOverrides)(ladder_command.ladder)
app.command("verify-resume", cls=TakesOverrides)(run_commands.verify_resume)
app.command("replay")(run_commands.replay)
app.command("resave-and-train", hidden=True)(run_commands.resave_and_train)
app.command("eval")(run_commands.evaluate)
app.command("generate")(run_commands.generate)
app.command("export")(run_commands.export)
app.command("import")(run_commands.import_)
app.command("compress")(compress_command.compress)
app.command("keep-outputs", cls=TakesOverrides)(run_commands.keep_outputs)
app.command("report")(run_commands.report)
app.command("runs")(run_commands.runs)
app.add_typer(data_commands.app, name="data")
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.add_typer(config_commands.app, name="config")
app.add_typer(submit_commands.app, name="submit")

HAS_RANKS = ("bigtrain.train.setup", "bigtrain.doctor.checks")
"""Modules that are imported in a process that may have a process group, or threads that never end."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bigtrain {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run one command. An error of the user, or of a disk, becomes one message and exit status 1. Any other error has
    another status, by which a launcher knows that another start may succeed.
    """
    status: str | int | None
    keep_streams(outlive_stdout=False)
    in_utf8()
    _protect_children()
    try:
        check_faults()
        with known_user():
            app(prog_name="bigtrain")
        status = DONE
    except SystemExit as leaving:
        status = leaving.code
    except Exception as error:
        message = error if isinstance(error, BigtrainError) else disk_error(error)
        if message is None:
            report_end("crashed")
            say(without_secrets("".join(traceback.format_exception(error))))
            status = CRASHED
        else:
            if speaks(message):
                _print(message, error)
            status = message.status
    if not isinstance(status, str) and not sys.modules.keys().isdisjoint(HAS_RANKS):
        from bigtrain.engine import leave

        leave(status or DONE)
    sys.exit(status)


def _print(message: BigtrainError, error: Exception) -> None:
    if shows_tracebacks():
        say(without_secrets("".join(traceback.format_exception(error))))
    say(without_secrets(f"error: {message}"))


def speaks(error: BigtrainError) -> bool:
    """Whether this process prints an error that other ranks may have too.

    Rank 0 prints an error that all ranks agreed on. Before there is a process group, every process of a host reads the
    same files, so the first of each host prints. After that a rank prints an error that it alone has.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return not error.shared or distributed.get_rank() == 0
    if error.shared:
        return not _has_launcher() or os.environ.get("RANK", "0") == "0"
    return not _has_launcher() or os.environ.get("LOCAL_RANK", "0") == "0"


def _has_launcher() -> bool:
    """Whether torchrun has started this process, and so a rank 0 beside it. Variables alone may be left over."""
    if (launcher := launcher_pid()) is not None:
        return launcher == os.getppid()
    return bool(text_of("TORCHELASTIC_RUN_ID")) and bool(text_of("RANK")) and bool(text_of("WORLD_SIZE"))


def _protect_children() -> None:
    """Processes that this one starts look for no modules in the working directory, unless this one has to as well."""
    try:
        here = str(Path.cwd())
    except OSError:  # the directory is gone
        here = ""
    if not os.environ.get("PYTHONSAFEPATH") and not {"", here} & set(sys.path):
        os.environ["PYTHONSAFEPATH"] = "1"
