"""The command line. Thin: it reads arguments, calls the library, and turns errors into messages.

Heavy libraries are imported inside the commands that need them, so that `--help` answers at once.
"""

import errno
import os
import sys
import warnings
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from solon import __version__
from solon.cli_constitution import app as constitution_app
from solon.errors import RunError, SolonError, UsageError
from solon.saving import cannot_write, first_line, is_kind
from solon.text import without_controls

if TYPE_CHECKING:
    from solon.pipeline import Run

app = typer.Typer(
    help="Train language models on a constitution: critique, revision, AI feedback, reward model, PPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(constitution_app, name="constitution")

RunDir = Annotated[Path, typer.Argument(help="A run folder, for instance runs/demo.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"solon {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
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
    allow_weak_judge: Annotated[
        bool, typer.Option("--allow-weak-judge", help="Go on with a judge that may be no better than chance.")
    ] = False,
) -> None:
    """Run the method, or go on with a run that was stopped."""
    from solon.pipeline import Run
    from solon.progress import Reporter
    from solon.recipe import load_recipe

    allowed = ("judge.allow_weak=true",) if allow_weak_judge else ()
    loaded, path = load_recipe(recipe, (*(set_ or ()), *allowed))
    folder = run_dir or Path("runs") / loaded.name
    reporter = Reporter()
    prepared = Run(loaded, path.parent, folder, reporter, fetch=not dry_run)
    if dry_run:
        _print_plan(prepared, until)
        for line in prepared.supply():
            typer.echo(line)
        return
    from solon.report.page import write_report
    from solon.summary import write_summary

    done = prepared.execute(until)
    if not prepared.process.main:
        return
    summary = write_summary(folder, loaded, prepared.constitution, done)
    report = write_report(folder)
    for warning in summary["warnings"]:
        reporter.say(f"Warning: {warning}")
    _print_ending(folder, report, until)


def _print_plan(prepared: "Run", until: str | None) -> None:
    typer.echo(f"{prepared.recipe.name} → {prepared.folder}   constitution {prepared.constitution.name}")
    for line in prepared.plan(until):
        state = f"reused, {line.reused.rows} rows" if line.reused else "would run"
        typer.echo(f"{line.stage.number} {line.stage.name:<10} {state:<20} {line.work}")


def _print_ending(folder: Path, report: Path, until: str | None) -> None:
    from solon.plan import BY_NAME

    typer.echo(f"\nReport:  {report}")
    if until is None:
        typer.echo(f"Model:   {folder / BY_NAME['reinforce'].folder / 'model'}")
        typer.echo(f"Next:    solon chat {quote(str(folder))}")
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
    typer.echo(f"Next:  solon constitution check {quote(str(folder / 'constitution.yaml'))}")
    typer.echo(f"       solon run {quote(str(folder / 'recipe.yaml'))} --dry-run")


@app.command()
def models(
    fetch: Annotated[
        bool, typer.Option(help="Fetch and convert the embedded model if it is not cached.")
    ] = True,
) -> None:
    """Fetch the embedded model, and show which models are embedded and which are cached."""
    from solon.models import inventory, resolve

    if fetch:
        resolve("embedded")
    for entry in inventory():
        typer.echo(str(entry))


@app.command()
def judge(
    data: Annotated[Path, typer.Option(help="Pairs with a known better answer (JSONL, JSON, CSV, Parquet).")],
    out: Annotated[Path, typer.Option(help="Folder for the figures, the judgements and the diagram.")],
    model: Annotated[str, typer.Option(help="`embedded`, a Hugging Face name, or a folder.")] = "embedded",
    kind: Annotated[
        str,
        typer.Option(
            "--judge", help="linear_probe, choice, chain_of_thought, likelihood, score or ensemble."
        ),
    ] = "linear_probe",
    constitution: Annotated[str, typer.Option(help="A constitution's path, or a shipped name.")] = "harmless",
    purpose: Annotated[str, typer.Option(help="Which principles: training or evaluation.")] = "training",
    principle: Annotated[
        list[str] | None,
        typer.Option(help="Ask by this principle and its comparisons alone. Repeatable. Default: all."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs that are read at the most.")] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="The model runs on this server, such as http://127.0.0.1:8000/v1. Repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a judge's setting: --set principles=4.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Measure a judge on pairs with a known better answer."""
    from solon.constitution import load_constitution
    from solon.feedback.judging import asked_of, at_endpoints, check_on_file, open_bench, write_check

    settings = (*at_endpoints(endpoint or ()), *(set_ or ()))
    loaded = load_constitution(constitution)
    asked = asked_of(model, kind, loaded.only(principle) if principle else loaded, purpose, settings)
    found = check_on_file(asked, open_bench(asked), data, limit)
    write_check(out, asked, found)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"\nFigures: {out / 'check.json'}")


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Option(help="A run folder (its base, SL and RL model), MODEL, or NAME=MODEL. Repeatable."),
    ],
    prompts: Annotated[
        Path,
        typer.Option(help="Prompts (JSONL, JSON, CSV, Parquet, text), or a shipped set such as red_team."),
    ],
    out: Annotated[Path, typer.Option(help="The readers' file, JSONL; the key is written beside it.")],
    column: Annotated[str, typer.Option(help="The column or key that holds the prompt.")] = "text",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer at the most.")] = 96,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the order, and of sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Write every model's answers for blind reading: in random order, the key apart."""
    from solon.blind import ask, key_of, named_models, read_texts, shuffled, write
    from solon.settings import Sampling

    if out.suffix != ".jsonl":
        raise UsageError(f"{out}: the answers are JSON lines. Name the file *.jsonl.")
    for old in (out, key_of(out)):
        if old.exists():
            raise UsageError(f"{old} exists, and readers may have written in it. Name another --out.")
    texts, asked = read_texts(prompts, column), named_models(models)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    key = write(shuffled(ask(asked, texts, sampling, device, dtype, seed), seed), out)
    typer.echo(f"Answers: {out}   {len(texts)} prompts, {len(asked)} models\nKey:     {key}")


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
        typer.echo(f"Error: {without_controls(str(known))}", err=True)
        sys.exit(known.exit_code)


def _explain(error: Exception) -> SolonError | None:
    """Errors of the machine in the words of the house; None for a fault of our own."""
    if isinstance(error, SolonError):
        return error
    if isinstance(error, OSError):
        return _explain_os(error)
    if cannot_write(error):
        fix = "Free some space, or remove the folder of a damaged file, and run again."
        return RunError(f"a model's file cannot be read or written ({first_line(error)}). {fix}")
    if is_kind(error, "torch", "OutOfMemoryError"):
        fix = "Lower batch_tokens and the batches of the recipe, free the device, or set device=cpu."
        return RunError(f"the device's memory is full ({first_line(error)}). {fix}")
    return None


# A path that no rights and no free space would make usable.
_NO_PATH = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def _explain_os(error: OSError) -> SolonError:
    """An error of the operating system: where, what, and the fix."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full ({error.filename or 'while writing'}). Free some space and run again."
        )
    if isinstance(error, PermissionError):
        return UsageError(f"{error.filename}: permission denied. Choose a folder that you may write to.")
    what = error.strerror or first_line(error)
    message = f"{error.filename}: {what}" if error.filename is not None else what
    if error.errno in _NO_PATH:
        return UsageError(f"{message}. Choose another path.")
    return RunError(f"{message}. Check the disk and the path, and run again; finished work stays.")
