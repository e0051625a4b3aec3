"""The command line. Thin: it reads arguments, calls the library, and turns errors into messages.

Heavy libraries are imported inside the commands that need them, so that `--help` answers at once.
"""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solon.errors import RunError, SolonError, UsageError

if TYPE_CHECKING:
    from solon.pipeline import Run

app = typer.Typer(
    help="Train language models on a constitution: critique, revision, AI feedback, reward model, PPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
constitution_app = typer.Typer(help="Look at a constitution and check it.", no_args_is_help=True)
app.add_typer(constitution_app, name="constitution")

RunDir = Annotated[Path, typer.Argument(help="A run folder, for instance runs/demo.")]
ConstitutionFile = Annotated[str, typer.Argument(help="A constitution's path, or a shipped name.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    _quiet_libraries()


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's path, or a shipped name such as `demo`.")],
    run_dir: Annotated[Path | None, typer.Option(help="Where the run lives. Default: runs/NAME.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting: --set revise.rounds=3. Repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.", metavar="STAGE")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
) -> None:
    """Run the method, or go on with a run that was stopped."""
    from solon.pipeline import Run
    from solon.progress import Reporter
    from solon.recipe import load_recipe

    loaded, path = load_recipe(recipe, tuple(set_ or ()))
    folder = run_dir or Path("runs") / loaded.name
    reporter = Reporter()
    prepared = Run(loaded, path.parent, folder, reporter, fetch=not dry_run)
    if dry_run:
        _print_plan(prepared, until)
        return
    from solon.report.page import write_report
    from solon.summary import write_summary

    done = prepared.execute(until)
    summary = write_summary(folder, loaded, prepared.constitution, done)
    report = write_report(folder)
    for warning in summary["warnings"]:
        reporter.say(f"Warning: {warning}")
    _print_ending(folder, report, finished=until is None)


def _print_plan(prepared: "Run", until: str | None) -> None:
    typer.echo(f"{prepared.recipe.name} → {prepared.folder}   constitution {prepared.constitution.name}")
    for line in prepared.plan(until):
        state = f"reused, {line.reused.rows} rows" if line.reused else "would run"
        typer.echo(f"{line.stage.number} {line.stage.name:<10} {state:<20} {line.work}")


def _print_ending(folder: Path, report: Path, finished: bool) -> None:
    typer.echo(f"\nReport:  {report}")
    if finished:
        question = "Can you help me hack into my neighbour's Wi-Fi?"
        typer.echo(f'Next:    solon chat {folder} --prompt "{question}"')
        typer.echo("         solon init mine    # your own constitution; then: solon run mine/recipe.yaml")


@app.command()
def chat(
    run_dir: RunDir,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and stop.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer at the most.")] = 96,
) -> None:
    """Ask base, SL and RL model the same question, side by side."""
    from solon.chat import Panel

    panel = Panel(run_dir, max_tokens)
    if prompt is not None:
        panel.ask(prompt)
        return
    typer.echo("Ask a question; an empty line or Ctrl-D ends.")
    while question := _read_line():
        panel.ask(question)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


@app.command()
def report(run_dir: RunDir) -> None:
    """Write the report of a run anew."""
    from solon.pipeline import open_run
    from solon.report.page import write_report

    typer.echo(f"Report:  {write_report(open_run(run_dir))}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder for your constitution and recipe.")],
) -> None:
    """Write a constitution and a recipe to edit."""
    from solon.scaffold import create

    for path in create(folder):
        typer.echo(f"wrote {path}")
    typer.echo(f"Next:  solon constitution check {folder / 'constitution.yaml'}")
    typer.echo(f"       solon run {folder / 'recipe.yaml'} --dry-run")


@app.command()
def models(
    fetch: Annotated[
        bool, typer.Option(help="Fetch and convert the embedded model if it is not cached.")
    ] = True,
) -> None:
    """Show which models are embedded and which are cached."""
    from solon.models import inventory, resolve

    if fetch:
        resolve("embedded")
    for entry in inventory():
        typer.echo(str(entry))


@constitution_app.command()
def check(file: ConstitutionFile) -> None:
    """Check a constitution; every problem is shown with its line and the fix."""
    from solon.constitution import load_constitution

    found = load_constitution(file)
    shown = found.demonstrations
    training, evaluation = len(found.of("training")), len(found.of("evaluation"))
    typer.echo(f"{found.name} {found.version}: no problem found. Digest {found.digest}.")
    typer.echo(
        f"{training} training and {evaluation} evaluation principles, "
        f"{len(shown.revisions)} worked revisions, {len(shown.comparisons)} worked comparisons."
    )
    for advice in found.advice():
        typer.echo(f"Advice: {advice}")


@constitution_app.command()
def show(file: ConstitutionFile) -> None:
    """Show a constitution's principles."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from solon.constitution import load_constitution

    found = load_constitution(file)
    table = Table(title=f"{found.name} {found.version}", show_lines=True)
    for name in ("principle", "purpose", "about", "question", "comparisons"):
        table.add_column(name)
    for p in found.principles:
        count = sum(c.principle == p.id for c in found.demonstrations.comparisons)
        table.add_row(p.id, p.purpose, escape(p.about), escape(p.question), str(count))
    Console().print(table)


def _quiet_libraries() -> None:
    """Libraries' own bars and advice would tear ours apart."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|trl|peft)\b")


def main() -> None:
    """The entry point: exit code 2 for a wrong call or file, 1 for a run that had to stop."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, standalone_mode=True)
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        known = _explain(error)
        if known is None:
            raise
        typer.echo(f"Error: {known}", err=True)
        sys.exit(known.exit_code)


def _explain(error: Exception) -> SolonError | None:
    """Errors of the machine in the words of the house; None for a fault of our own."""
    if isinstance(error, SolonError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunError(
            f"the disk is full ({error.filename or 'while writing'}). Free some space and run again."
        )
    if isinstance(error, PermissionError):
        return UsageError(f"{error.filename}: permission denied. Choose a folder that you may write to.")
    return None
