"""The report page: honest, complete, self-contained, and deaf to hostile text."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.errors import ProblemsError, RunError
from solon.feedback.effects import as_metrics
from solon.plan import STAGES
from solon.records import Prompt
from solon.report import heatmap, ink, plots, wording
from solon.report.page import write_report
from solon.report.transcripts import panels, rejections, shortened, threads
from solon.report.worddiff import Piece, word_diff
from tests.unit import report_fixture as fixture

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Tree(HTMLParser):
    """Fails on a tag that closes another one; collects the tags, ids and outside references."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values), f"<{tag}> has an event handler"
        self.ids += [v for k, v in values.items() if k == "id" and v]
        self.links += [v for k, v in values.items() if k in ("href", "src", "xlink:href", "action") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixture.make_run(tmp_path_factory.mktemp("runs") / "laptop")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_stands_alone_and_is_well_formed(page: str, run: Path) -> None:
    tree = Tree(page)
    assert tree.tags.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    assert all(link.startswith("#") for link in tree.links)
    assert {link[1:] for link in tree.links} <= set(tree.ids)
    assert len(tree.ids) == len(set(tree.ids))
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "default-src 'none'" in page
    assert [path.name for path in run.glob("*report*")] == ["report.html"]


def test_hostile_rows_and_principles_are_shown_and_not_run(page: str) -> None:
    assert "<script" not in page.lower()
    assert "<code>&lt;script&gt;alert(&#39;id&#39;)&lt;/script&gt;</code>" in page
    assert "&lt;script&gt;alert(&#39;row&#39;)&lt;/script&gt;" in page
    assert "&lt;script&gt;alert(&#39;principle&#39;)&lt;/script&gt;" in page


def test_warnings_come_before_the_verdict_and_all_numbers(page: str) -> None:
    warning = page.index("not better than chance: do not trust what follows")
    assert page.index("<h1>") < warning < page.index('class="verdict"') < page.index('id="numbers"')


def test_every_part_is_there(page: str) -> None:
    parts = (
        "numbers",
        "figures",
        "revisions",
        "answers",
        "filters",
        "principles",
        "constitution",
        "cost",
        "reproduce",
        "glossary",
    )
    places = [page.index(f'id="{part}"') for part in parts]
    assert places == sorted(places)
    assert page.count("<figure>") == 6
    assert "copied demonstration" in page
    assert "held-out-care" in page
    assert "interrupted and resumed 1×" in page
    assert "reused from an earlier run" in page
    assert "rejected: speaks of the answer" in page
    assert "RL over base 81\u202f%" in page
    assert "nothing was scored" in page
    assert 'class="empty"' not in page


def test_the_same_run_gives_the_same_bytes(page: str, run: Path) -> None:
    assert write_report(run).read_text(encoding="utf-8") == page


@pytest.mark.parametrize("until", range(9))
@pytest.mark.parametrize("summary", [True, False])
def test_an_unfinished_run_shows_what_is_there(tmp_path: Path, until: int, summary: bool) -> None:
    page = write_report(fixture.make_run(tmp_path / "run", until, summary)).read_text(encoding="utf-8")
    Tree(page)
    assert "the evaluation has not run" in page
    missing = re.search(r"Not run yet:</strong> ([^.]*)\.", page)
    assert missing is not None
    assert missing[1] == ", ".join(stage.name for stage in STAGES[until:])
    assert ("Nothing has been revised yet" in page) == (until < 3)
    assert ("Reward against distance" in page) == (until >= 8)
    # What the principles do stands in the summary only, and is silent where it is not known.
    known = summary and until >= 6
    assert [part in page for part in ("What each principle does", "#principles", "Decisive")] == [known] * 3


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    assert "No stage has finished yet" in write_report(tmp_path).read_text(encoding="utf-8")


def test_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json: damaged"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(RunError, match="no JSON object"):
        write_report(tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "constitution.yaml").write_text("name: x\n")
    with pytest.raises(ProblemsError, match="principles"):
        write_report(tmp_path)


def test_what_no_page_can_hold_is_replaced(tmp_path: Path) -> None:
    summary = {"recipe": "a\x00b\x1b[31m\ud800c", "warnings": ["<b>bold</b>"]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h1>a\ufffdb\ufffd[31m\ufffdc</h1>" in page
    assert "&lt;b&gt;bold" in page


def test_statistics_load_no_matplotlib() -> None:
    code = "import sys, solon.report.statistics, solon.report.worddiff; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the verdict ---------------------------------------------------------------------------------------


def compared(ci95: list[float] | None, **more: Any) -> dict[str, Any]:
    rate = None if ci95 is None else sum(ci95) / 2
    pair = {"a": "rl", "b": "base", "on": "red_team", "win_rate": rate, "ci95": ci95, "n": 40}
    return {"evaluation": {"models": {}, "pairwise": [pair]}, **more}


@pytest.mark.parametrize(
    ("ci95", "said", "unsaid"),
    [
        (
            [0.6, 0.8],
            "(95\u202f% interval 60–80\u202f%, n\u00a0=\u00a040).",
            "includes",
        ),
        ([0.45, 0.65], "the interval includes 50\u202f%, so no difference is shown", "worse"),
        ([0.5, 0.7], "the interval includes 50\u202f%", "worse"),
        ([0.2, 0.4], "RL is worse", "includes"),
        (None, "no pair could be scored", "includes"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(ci95: list[float] | None, said: str, unsaid: str) -> None:
    (sentence,) = wording.verdict(compared(ci95))
    assert said in sentence
    assert unsaid not in sentence


def test_a_judge_at_chance_is_said_first_and_a_good_one_last() -> None:
    judge = {"evaluation_accuracy": 0.6, "evaluation_n": 20, "evaluation_ci95": [0.4, 0.8]}
    chance = "not shown to be better than chance"
    assert chance in wording.verdict(compared([0.6, 0.8], judge=judge))[0]
    best_of_many = {**judge, "evaluation_ci95": [0.51, 0.9], "evaluation_weak": True}
    assert chance in wording.verdict(compared([0.6, 0.8], judge=best_of_many))[0]
    good = {**judge, "evaluation_ci95": [0.7, 0.9], "evaluation_weak": False}
    assert "was right on" in wording.verdict(compared([0.6, 0.8], judge=good))[-1]


def test_formats() -> None:
    assert wording.percent(0.678) == "68\u202f%"
    assert wording.interval([0.574, 0.776]) == "57–78\u202f%"
    assert wording.count(1234567) == "1\u202f234\u202f567"
    assert wording.decimal(-0.5) == "−0.50"
    assert [wording.percent(None), wording.interval(None), wording.count(None), wording.decimal(None)] == [
        "–"
    ] * 4
    spans = [wording.duration(s).replace("\u202f", " ") for s in (4.4, 59.7, 200, 7500)]
    assert spans == ["4 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]


def test_the_judges_that_were_checked_stand_in_a_table(page: str) -> None:
    part = page.split("The judges' check")[1]
    rows = re.findall(r"<tr>(.*?)</tr>", part.split("</tbody>")[0].split("<tbody>")[1], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    assert [row[:3] for row in cells] == [
        ["linear probe", "comparisons", "93\u202f%"],
        ["linear probe", "&lt;i&gt;pairs&lt;/i&gt;.jsonl", "61\u202f%"],
        ["choice", "comparisons", "52\u202f%"],
    ]
    assert cells[2][5:] == ["–", "55\u202f%, 45\u202f%", "61\u202f%", "0.041", "2"]
    assert "3 × an answer is empty, 5 × near-tie." in page


# --- what each principle does --------------------------------------------------------------------------


def test_the_table_of_principles_shows_their_figures_and_dashes(tmp_path: Path) -> None:
    # Principle "one" is against the mean of the others on pair 1 of 2; "mute" scored nothing.
    p_NK = [[0.9, 0.2, math.nan], [0.7, 0.6, math.nan]]
    found = as_metrics(p_NK, ("one", "two", "mute"), {"one": 1234})
    page = write_report(run_with(tmp_path / "run", found)).read_text(encoding="utf-8")
    cells = {row[0]: row[1:] for row in table(page, "principles")}
    # The mean moves from 0.55 to 0.2 and from 0.65 to 0.6: by 20 points on average.
    assert cells["one"] == ["1\u202f234", "50\u202f%", "50\u202f%", "20.0", "50\u202f%"]
    assert cells["mute"] == ["0", "–", "–", "–", "–"]
    assert "On 2 labelled pairs" in page
    assert "reads one direction" not in page


def test_principles_that_always_agree_are_said_to_move_no_label(tmp_path: Path) -> None:
    found = as_metrics([[0.9, 0.9], [0.3, 0.3]], ("one", "two"), {})
    page = write_report(run_with(tmp_path / "run", found)).read_text(encoding="utf-8")
    assert "reads one direction for all principles" in page
    assert "so their wording does not move its labels.</p>" in page


@pytest.mark.parametrize(
    ("p", "said"),
    [
        ([[0.9, 0.9]], "move its labels."),
        ([[0.9, 0.8]], "move its labels from one answer to the other, only how sure they are."),
        ([[0.9, 0.2]], None),
        ([[0.9, 0.9], [0.9, 0.5]], None),
        ([[0.9, math.nan]], None),
        ([[0.9]], None),
    ],
)
def test_one_direction_is_claimed_only_of_full_agreement(p: list[list[float]], said: str | None) -> None:
    told = wording.one_direction(as_metrics(p, "ab"[: len(p[0])], {}))
    assert told is None if said is None else told is not None and told.endswith(said)


def run_with(folder: Path, principles: dict[str, Any]) -> Path:
    run = fixture.make_run(folder)
    summary = {**fixture.full_summary(), "principles": principles}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return run


def table(page: str, section: str) -> list[list[str]]:
    """The cells of a section's table, without the tags in them."""
    part = page.split(f'<section id="{section}">')[1].split("</tbody>")[0].split("<tbody>")[1]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in found]


# --- examples ------------------------------------------------------------------------------------------


def prompts(kind: Any = "red_team", count: int = 8) -> list[Prompt]:
    return [Prompt(origin="test", text=f"Prompt {i}", kind=kind, split="train") for i in range(count)]


def test_threads_show_rejected_ones_and_build_on_the_last_usable_text() -> None:
    found = threads([row for i, p in enumerate(prompts()) for row in fixture.revised(p, i)], count=6)
    assert [t.rejected for t in found] == [False] * 4 + [True] * 2
    first, second = found[-1].rounds
    assert first.rejected is None
    assert second.rejected == "speaks of the answer"
    after_first = "".join(piece.text for piece in first.diff if piece.change != "deleted")
    assert second.before == after_first
    assert (first.number, first.principle, first.candidates) == (1, "no-harm", 2)


def test_the_round_after_a_rejected_revision_starts_from_the_text_before_it() -> None:
    (prompt,) = prompts(count=1)
    rows = [
        fixture.text_row(prompt, "first"),
        fixture.text_row(prompt, "bad", kind="revision", round=1, unusable="unchanged"),
        fixture.text_row(prompt, "good", kind="revision", round=2),
    ]
    (thread,) = threads(rows)
    assert [r.before for r in thread.rounds] == ["first", "first"]
    assert thread.rounds[0].critique is None
    assert rejections(rows) == {"unchanged": 1}


def test_panels_hold_the_models_in_order() -> None:
    (prompt,) = prompts("helpful", 1)
    rows = [fixture.text_row(prompt, f"by {m}", origin=m) for m in ("rl", "base", "sl", "someone else")]
    (panel,) = panels(rows, [], "helpful", 4)
    assert list(panel.answers.items()) == [("base", "by base"), ("sl", "by sl"), ("rl", "by rl")]
    assert panels(rows, [], "red_team", 4) == []


def test_long_texts_are_cut_and_say_so() -> None:
    assert shortened("x" * 3_500).endswith("… (1,500 more characters)")
    assert shortened("short") == "short"


def test_word_diff_by_hand() -> None:
    assert word_diff("You can get in.", "You should not get in.") == [
        Piece("same", "You "),
        Piece("deleted", "can"),
        Piece("inserted", "should not"),
        Piece("same", " get in."),
    ]


def test_a_lone_word_between_two_changes_counts_as_changed() -> None:
    changed = [piece.change for piece in word_diff("a b the c d", "x y the z w")]
    assert changed == ["deleted", "inserted"]


@given(st.text(alphabet="ab c.\n'é", max_size=60), st.text(alphabet="ab c.\n'é", max_size=60))
def test_word_diff_gives_both_texts_back(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert "".join(p.text for p in pieces if p.change != "inserted") == before
    assert "".join(p.text for p in pieces if p.change != "deleted") == after
    assert all(p.text for p in pieces)


# --- figures -------------------------------------------------------------------------------------------

HOSTILE_NAME = '--><script>"'
AGREEMENT = fixture.effects(["one", HOSTILE_NAME, "three"])["agreement"]


def agreement(shares: list[list[float | None]]) -> str:
    return heatmap.agreement(["one", HOSTILE_NAME, "three"][: len(shares)], shares)


SUMMARY = fixture.full_summary()
STEPS = [json.loads(step.metrics) for step in fixture.ppo_steps(12)]
EVALUATION, BINS = SUMMARY["evaluation"], SUMMARY["reward_model"]["reliability"]
FIGURES: dict[str, tuple[Any, list[Any], tuple[str, ...]]] = {
    "revisions": (plots.revision_curve, EVALUATION["revision_rounds"], ("first answer", "(%)", "71 %")),
    "reward_kl": (plots.reward_against_kl, STEPS, ("nats an episode", "score", "step 1", "step 12")),
    "ppo": (plots.ppo_curves, STEPS, ("PPO step", "Entropy", "nats a token", "tokens an answer")),
    "calibration": (plots.calibration, BINS, ("Predicted preference (%)", "Pairs")),
    "agreement": (agreement, AGREEMENT, ("never the same", "one", HOSTILE_NAME)),
    "ratings": (plots.ratings, EVALUATION["ratings"], ("Rating (nats", "Ordinary prompts", "−0.86")),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_labelled_and_take_their_colours_from_the_page(name: str) -> None:
    draw, data, labels = FIGURES[name]
    svg = draw(data)
    texts = texts_of(svg)
    assert all(any(label in text for text in texts) for label in labels)
    # Clip paths and markers are referred to by "#id"; no colour may be left that the page does not set.
    assert re.findall(r"(?:fill|stroke): (?!none|var\(--)[^;\"]+", svg) == []
    assert draw(data) == svg


def texts_of(svg: str) -> list[str]:
    """The words of a drawing, which must be well formed and have its title among them."""
    root = ElementTree.fromstring(svg)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.findtext("{http://www.w3.org/2000/svg}title") in texts
    return texts


@pytest.mark.parametrize("name", FIGURES)
def test_figures_refuse_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        FIGURES[name][0]([])


def test_the_heat_map_writes_values_up_to_20_principles() -> None:
    shares = [[1.0, 0.25, None], [0.25, 1.0, 0.5], [None, 0.5, 1.0]]
    texts = texts_of(agreement(shares))
    assert [texts.count(words) for words in ("25", "50", "–", "100")] == [2, 2, 2, 0]
    many = [str(i) + "-" * 30 for i in range(21)]
    texts = texts_of(heatmap.agreement(many, [[0.75] * 21] * 21))
    assert "75" not in texts
    assert texts.count("20" + "-" * 23 + "…") == 2
    assert texts_of(heatmap.agreement(many[:20], [[0.75] * 20] * 20)).count("75") == 380


def test_cells_are_coloured_by_their_distance_from_one_half() -> None:
    svg = heatmap.agreement(["one", "two"], [[1.0, 0.9], [0.1, 1.0]])
    # 0.55 · |2 · 0.9 − 1| = 0.44; the key has the same two shades once more each.
    for colour in ("accent", "rl"):
        assert len(re.findall(rf"fill: var\(--{colour}\); fill-opacity: 0\.44", svg)) == 2
    assert "fill: var(--grid)" in svg


def test_figures_of_a_short_run() -> None:
    one = STEPS[:1]
    assert "step 1<" in plots.reward_against_kl(one)
    assert "Entropy" in plots.ppo_curves(one)
    without = [{k: v for k, v in step.items() if k != "entropy"} for step in STEPS]
    assert "Entropy" not in plots.ppo_curves(without)
    refusing = [{**step, "refused_red_team": 0.5, "refused_helpful": 0.1} for step in STEPS]
    assert "Refusals, ordinary prompts" in plots.ppo_curves(refusing)


def test_a_title_cannot_break_out_of_its_drawing() -> None:
    hostile = '"><script>\\1$x$'
    with ink.drawing(hostile, 100) as canvas:
        canvas.axes()[0].set_title(hostile)
    root = ElementTree.fromstring(canvas.svg)
    assert root.find(".//{*}script") is None
