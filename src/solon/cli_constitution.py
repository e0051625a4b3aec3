"""`solon constitution …`: look at a constitution, check it, test it, compare it, import and export it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solon.errors import UsageError
from solon.text import without_controls

if TYPE_CHECKING:
    from solon.constitution import Constitution
    from solon.feedback.judging import PrincipleTest

app = typer.Typer(
    help="Look at a constitution, check, test, compare, import and export it.", no_args_is_help=True
)

ConstitutionFile = Annotated[str, typer.Argument(help="A constitution's path, or a shipped name.")]
Model = Annotated[str, typer.Option(help="`embedded`, a Hugging Face name, or a folder.")]
Kind = Annotated[
    str,
    typer.Option("--judge", help="linear_probe, choice, chain_of_thought, likelihood, score or ensemble."),
]
Purpose = Annotated[str, typer.Option(help="Which principles: training or evaluation.")]


@app.command()
def check(file: ConstitutionFile) -> None:
    """Check a constitution; every problem is shown with its line and the fix."""
    from solon.constitution import load_constitution

    found = load_constitution(file)
    shown = found.demonstrations
    training, evaluation = len(found.of("training")), len(found.of("evaluation"))
    typer.echo(f"{found.name} {without_controls(found.version)}: no problem found. Digest {found.digest}.")
    typer.echo(
        f"{training} training and {evaluation} evaluation principles, "
        f"{len(shown.revisions)} worked revisions, {len(shown.comparisons)} worked comparisons."
    )
    for advice in found.advice():
        typer.echo(f"Advice: {advice}")


@app.command()
def show(file: ConstitutionFile) -> None:
    """Show a constitution's principles."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from solon.constitution import load_constitution

    found = load_constitution(file)
    table = Table(title=escape(f"{found.name} {without_controls(found.version)}"), show_lines=True)
    for name in ("principle", "purpose", "about", "question", "comparisons"):
        table.add_column(name)
    for p in found.principles:
        count = sum(c.principle == p.id for c in found.demonstrations.comparisons)
        table.add_row(
            p.id, p.purpose, *(escape(without_controls(text)) for text in (p.about, p.question)), str(count)
        )
    Console().print(table)


@app.command("test")
def run_tests(
    file: ConstitutionFile,
    model: Model = "embedded",
    judge: Kind = "linear_probe",
    purpose: Purpose = "training",
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="The model runs on this server, such as http://127.0.0.1:8000/v1. Repeatable."),
    ] = None,
    failures: Annotated[bool, typer.Option(help="Show the comparisons that the judge got wrong.")] = False,
) -> None:
    """Run each principle's worked comparisons as its unit tests, and show a table by principle."""
    from solon.constitution import load_constitution
    from solon.feedback.judging import asked_of, at_endpoints, open_bench, run_unit_tests

    asked = asked_of(model, judge, load_constitution(file), purpose, at_endpoints(endpoint or ()))
    _print_tests(run_unit_tests(asked, open_bench(asked)), failures)


def _print_tests(tests: "list[PrincipleTest]", failures: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("principle", "right", "of", "95 % interval")
    for one in tests:
        if one.found is None:
            table.add_row(one.principle, "–", "0", "no comparison that could be scored")
            continue
        low, high = one.found.ci95
        right = round(one.found.accuracy * one.found.n)
        table.add_row(one.principle, str(right), str(one.found.n), f"{low:.0%} to {high:.0%}")
    Console().print(table)
    asked = sum(one.found.n for one in tests if one.found)
    wrong = sum(len(one.failed) for one in tests)
    typer.echo(f"{asked - wrong} of {asked} comparisons are judged as the constitution says.")
    for one in tests if failures else ():
        for item in one.failed:
            shown = f"\n{one.principle}: {item.prompt}\n  better: {item.better}\n  worse:  {item.worse}"
            typer.echo(without_controls(shown))


@app.command()
def diff(
    a: ConstitutionFile,
    b: ConstitutionFile,
    run: Annotated[
        Path | None, typer.Option(help="A run on whose labelled pairs both wordings are asked.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of the run that are asked at the most.")] = 64,
) -> None:
    """Show what differs between two constitutions and, with --run, on how many pairs verdicts differ."""
    from solon.constitution import load_constitution
    from solon.constitution_diff import differences

    old, new = load_constitution(a), load_constitution(b)
    found = differences(old, new)
    for line in found.lines():
        typer.echo(without_controls(line))
    if run is None:
        if found.reworded:
            typer.echo("Add --run RUN to see on how many of its pairs the wordings prefer different answers.")
        return
    from solon.feedback.flips import flips

    for one in flips(old, new, run, pairs):
        typer.echo(str(one))


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files of one of the known formats.")],
    out: Annotated[Path, typer.Option(help="The constitution to write.")],
    name: Annotated[str, typer.Option(help="The new constitution's name.")] = "imported",
    format_: Annotated[
        str | None, typer.Option("--format", help="Recognised by content if it is not given.")
    ] = None,
) -> None:
    """Make a constitution of the paper's instruction files, Hugging Face's JSON, or a CSV of statements."""
    from solon.constitution import dump
    from solon.exchange import import_constitution

    if out.exists():
        raise UsageError(f"{out}: exists already. Name another file with --out.")
    found, notes = import_constitution(files, name, format_)
    out.write_text(dump(found), encoding="utf-8")
    typer.echo(f"wrote {out}: {len(found.principles)} principles")
    for note in notes:
        typer.echo(f"Note: {note}")


@app.command()
def export(
    file: ConstitutionFile,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="paper-revisions, paper-comparisons, huggingface or csv.")
    ],
) -> None:
    """Write a constitution in another project's format."""
    from solon.constitution import load_constitution
    from solon.exchange import export_constitution

    found: Constitution = load_constitution(file)
    text = export_constitution(found, format_)
    if out.exists():
        raise UsageError(f"{out}: exists already. Name another file with --out.")
    out.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {out}: {len(found.principles)} principles")
