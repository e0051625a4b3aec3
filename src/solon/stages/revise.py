"""Stage 3, revise: the model answers, criticises its answer by a principle, and rewrites it.

Bai et al. 2022, sec. 3.1: a principle is drawn anew each round, from a generator seeded by the prompt
and the round. Critique and revision are each asked in a conversation (question, answer, request) after
worked examples of the same shape; the paper's single transcript differs in that the critique is there a
turn of the model itself. Models too small to rework a text are shown the critique, the request and the
question alone (`revise.ask: question`). Every text is kept; a filter that rejects a revision names its
reason, and the next round then builds on the last usable text.

Answers to helpful prompts are not revised: they keep the fine-tuned model helpful. One that refuses, or
begins as if it would, is no use for that, and is asked for again: where the model is evasive by itself,
fine-tuning needs an example the most.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from solon.constitution import Principle, Revised
from solon.digest import seed_from
from solon.engines.base import (
    Completion,
    Conversation,
    Engine,
    GenerateRequest,
    Message,
    completions,
    used_by,
)
from solon.engines.local import LocalEngine
from solon.feedback.base import Judge, Question
from solon.filters import clean, reject_revision
from solon.pipeline import Inputs
from solon.recipe import Recipe
from solon.records import Prompt, TextKind, Written
from solon.refusal import is_excuse, is_refusal
from solon.stages.candidates import Candidates, standings
from solon.stages.common import (
    asks,
    choose,
    engine_for,
    in_batches,
    or_least,
    picked_judge,
    role_engine,
    written,
)
from solon.store import StageResult, Workspace
from solon.templates import fill
from solon.text import leading_sentences

EVASIVE = "evasive"  # Why an answer to a helpful prompt is unusable


def run(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> StageResult:
    settings = recipe.revise
    prompts = inputs.rows("red_team", Prompt)
    chosen = choose(
        prompts, "train", {"red_team": settings.prompts, "helpful": settings.helpful}, recipe.seed
    )
    reviser, used = _open(recipe, inputs)
    rows = workspace.batches(in_batches(chosen, settings.batch), Written, reviser.work, "prompts", used)
    reasons, evaded, unscored = Counter[str | None](), set[str](), 0
    judged = settings.candidates > 1
    for row in rows:
        if row.kind == "revision" and row.chosen:
            reasons[row.unusable] += 1
        if row.unusable == EVASIVE:
            evaded.add(row.prompt_id)
        elif judged and row.kind == "revision" and row.unusable is None and row.better is None:
            unscored += 1
    total, usable = reasons.total(), reasons.pop(None, 0)
    metrics = {
        "revisions": {"total": total, "usable": usable, "unscored": unscored},
        "filters": dict(reasons),
        "evasive": len(evaded),
    }
    if unscored:
        workspace.reporter.say(
            f"{unscored} usable revisions are without a score: the judge could not tell whether they are "
            "better. Of equals the first is taken."
        )
    return StageResult(rows, metrics, tokens=used() - workspace.counted)


def _open(recipe: Recipe, inputs: Inputs) -> tuple["Reviser", Callable[[], int]]:
    """The reviser, and what tells how many tokens its models have read and generated."""
    policy = engine_for(recipe, inputs.base)
    here = {inputs.base.identity: policy}
    critic = role_engine(recipe, inputs, "critic", here)
    if recipe.revise.candidates == 1:
        return Reviser(recipe, inputs, policy, critic, None), used_by(policy, critic)
    if isinstance(critic, LocalEngine):
        here[inputs.models["critic"].identity] = critic
    judging = role_engine(recipe, inputs, "judge", here)
    reviser = Reviser(recipe, inputs, policy, critic, picked_judge(recipe, inputs, judging))
    return reviser, used_by(policy, critic, judging)


@dataclass(frozen=True)
class Thread:
    """One prompt on its way through the rounds: the last usable text, and all rows so far."""

    prompt: Prompt
    current: Written
    rows: tuple[Written, ...]


def _marked(thread: Thread) -> Thread:
    """A helpful prompt's thread, whose answer is unusable if it evades."""
    answer = thread.current
    if not (is_refusal(answer.text) or is_excuse(answer.text)):
        return thread
    evasive = answer.changed(unusable=EVASIVE, chosen=False)
    return Thread(thread.prompt, evasive, (evasive,))


@dataclass(frozen=True)
class Draw:
    """What one round of one thread was given: its principle and the worked examples shown."""

    principle: Principle
    shown: tuple[Revised, ...]


class Reviser:
    """Takes a batch of prompts through all rounds: `policy` answers, `critic` criticises and revises."""

    def __init__(
        self, recipe: Recipe, inputs: Inputs, policy: Engine, critic: Engine, judge: Judge | None
    ) -> None:
        self._settings = recipe.revise
        self._seed = recipe.seed
        self._constitution = inputs.constitution
        training = {p.id for p in inputs.constitution.of("training")}
        demonstrations = inputs.constitution.demonstrations.revisions
        self._demonstrations = [d for d in demonstrations if d.principle in training]
        self._policy = policy
        self._critic = critic
        self._judge = judge

    def work(self, prompts: Sequence[Prompt]) -> list[Written]:
        threads = self._answer(prompts)
        revised = [t for t in threads if t.prompt.kind == "red_team"]
        for number in range(1, self._settings.rounds + 1):
            revised = self._round(revised, number)
        others = self._ask_again([t for t in threads if t.prompt.kind != "red_team"])
        return [row for thread in [*revised, *others] for row in thread.rows]

    def _ask_again(self, threads: Sequence[Thread]) -> list[Thread]:
        """Threads of helpful prompts, answered anew while they evade and there are tries left."""
        settled = {thread.prompt.id: _marked(thread) for thread in threads}
        for attempt in range(1, self._settings.tries):
            evasive = [t for t in settled.values() if t.current.unusable]
            if not evasive:
                break
            for new in self._answer([t.prompt for t in evasive], attempt):
                old, now = settled[new.prompt.id], _marked(new)
                settled[new.prompt.id] = replace(now, rows=(*old.rows, *now.rows))
        return list(settled.values())

    def _answer(self, prompts: Sequence[Prompt], attempt: int = 0) -> list[Thread]:
        sampling, again = self._settings.answer, (attempt,) if attempt else ()
        requests = [
            GenerateRequest(asks(p.text), sampling, seed_from(self._seed, p.id, 0, *again)) for p in prompts
        ]
        threads = []
        for prompt, completion in zip(prompts, completions(self._policy, requests), strict=True):
            row = written(
                prompt,
                completion,
                kind="answer",
                request=prompt.text,
                sampling=sampling,
                origin=self._policy.name,
                number=attempt,
            )
            threads.append(Thread(prompt, row, (row,)))
        return threads

    def _round(self, threads: Sequence[Thread], number: int) -> list[Thread]:
        shown = self._examples(threads, number)
        draws = [Draw(self._principle(t.prompt, number), shown) for t in threads]
        if self._settings.critique:
            threads = self._criticise(threads, draws, number)
        return self._revise(threads, draws, number)

    def _principle(self, prompt: Prompt, number: int) -> Principle:
        rng = random.Random(seed_from(self._seed, prompt.id, "round", number))
        return self._constitution.draw(rng, kind=prompt.kind)

    def _examples(self, threads: Sequence[Thread], number: int) -> tuple[Revised, ...]:
        """Worked examples drawn anew each round, one draw a batch: an engine reads a common start once."""
        ids = [t.prompt.id for t in threads]
        rng = random.Random(seed_from(self._seed, ids, "examples", number))
        count = min(self._settings.demonstrations, len(self._demonstrations))
        return tuple(rng.sample(self._demonstrations, count))

    def _critique_talk(self, thread: Thread, draw: Draw) -> Conversation:
        def turns(example: Revised) -> Conversation:
            request = self._constitution.principle(example.principle).critique
            asked = (*_answered(example.prompt, example.answer), Message("user", request))
            return (*asked, Message("assistant", example.critique))

        shown = [turn for example in draw.shown for turn in turns(example)]
        own = _answered(thread.prompt.text, thread.current.text)
        return (*shown, *own, Message("user", draw.principle.critique))

    def _revision_talk(self, thread: Thread, draw: Draw) -> Conversation:
        """The critique stands in the user's request: as a turn of its own, small models only repeat it."""

        def turns(example: Revised) -> Conversation:
            principle = self._constitution.principle(example.principle)
            request = self._revision_request(principle, example.critique)
            asked = self._asked(example.prompt, example.answer, request)
            return (*asked, Message("assistant", example.revision))

        shown = [turn for example in draw.shown for turn in turns(example)]
        request = self._revision_request(draw.principle, thread.rows[-1].text)
        return (*shown, *self._asked(thread.prompt.text, thread.current.text, request))

    def _asked(self, prompt: str, answer: str, request: str) -> Conversation:
        """The turns that ask for a revision of `answer`."""
        if self._settings.ask == "question":
            return (Message("user", fill("revise_question", request=request, prompt=prompt)),)
        return (*_answered(prompt, answer), Message("user", request))

    def _revision_request(self, principle: Principle, critique: str) -> str:
        if not self._settings.critique:
            return principle.revision
        return fill("revise_by_critique", critique=critique, request=principle.revision)

    def _criticise(self, threads: Sequence[Thread], draws: Sequence[Draw], number: int) -> list[Thread]:
        """Every thread with its critique added."""
        requests = [
            GenerateRequest(
                self._critique_talk(t, d),
                self._settings.critic,
                seed_from(self._seed, t.prompt.id, "critique", number),
            )
            for t, d in zip(threads, draws, strict=True)
        ]
        found = completions(self._critic, requests)
        rows = [
            self._row(t, d, "critique", number, completion)
            for t, d, completion in zip(threads, draws, found, strict=True)
        ]
        return [replace(t, rows=(*t.rows, row)) for t, row in zip(threads, rows, strict=True)]

    def _revise(self, threads: Sequence[Thread], draws: Sequence[Draw], number: int) -> list[Thread]:
        """Every thread with its candidate revisions added and the best one marked."""
        count = self._settings.candidates
        requests = [
            GenerateRequest(
                self._revision_talk(t, d),
                self._settings.revision,
                seed_from(self._seed, t.prompt.id, "revision", number, candidate),
                self._settings.sentences,
            )
            for t, d in zip(threads, draws, strict=True)
            for candidate in range(count)
        ]
        found = iter(completions(self._critic, requests))
        rows = [
            [
                self._filtered(thread, draw, self._row(thread, draw, "revision", number, next(found), k))
                for k in range(count)
            ]
            for thread, draw in zip(threads, draws, strict=True)
        ]
        if self._judge is not None:
            rows = _judged(self._judge, threads, draws, rows)
        return [_with_best(thread, found) for thread, found in zip(threads, rows, strict=True)]

    def _filtered(self, thread: Thread, draw: Draw, row: Written) -> Written:
        row = self._shortened(row)
        text = clean(row.text)
        shown = [part for d in draw.shown for part in (d.answer, d.critique, d.revision)]
        critique = thread.rows[-1].text if self._settings.critique else ""
        reason = reject_revision(text, thread.current.text, shown, self._settings.max_copied, critique)
        return row.changed(text=text, unusable=reason)

    def _shortened(self, row: Written) -> Written:
        """Small models begin well and then go in circles: the first sentences are the revision."""
        if self._settings.sentences is None:
            return row
        text = leading_sentences(row.text, self._settings.sentences)
        return row if text == row.text else row.changed(text=text, finish="stop")

    def _row(
        self,
        thread: Thread,
        draw: Draw,
        kind: TextKind,
        number: int,
        completion: Completion,
        candidate: int = 0,
    ) -> Written:
        criticised = thread.rows[-1].kind == "critique"
        row = written(
            thread.prompt,
            completion,
            kind=kind,
            request=draw.principle.critique if kind == "critique" else draw.principle.revision,
            sampling=self._settings.critic if kind == "critique" else self._settings.revision,
            origin=self._critic.name,
            number=candidate,
            parents=(thread.prompt.id, thread.current.id, *((thread.rows[-1].id,) if criticised else ())),
        )
        return row.changed(round=number, principle=draw.principle.id, constitution=self._constitution.digest)


def _judged(
    judge: Judge, threads: Sequence[Thread], draws: Sequence[Draw], rows: Sequence[Sequence[Written]]
) -> list[list[Written]]:
    """The threads' candidates with their standing.

    One that the judge finds worse than the text it revises is no improvement: unusable.
    """
    usable = [[i for i, row in enumerate(of_thread) if row.unusable is None] for of_thread in rows]
    asked = [
        _candidates(thread, draw, [of_thread[i].text for i in places])
        for thread, draw, of_thread, places in zip(threads, draws, rows, usable, strict=True)
    ]
    judged = [list(of_thread) for of_thread in rows]
    for of_thread, places, found in zip(judged, usable, standings(judge, asked), strict=True):
        for i, one in zip(places, found, strict=True):
            unusable = "judged-worse" if one.against is not None and one.against < 0.5 else None
            of_thread[i] = of_thread[i].changed(score=one.win, better=one.better, unusable=unusable)
    return judged


def _candidates(thread: Thread, draw: Draw, texts: Sequence[str]) -> Candidates:
    before = thread.current.text
    about = Question(draw.principle, thread.prompt.text, before, before, kind=thread.prompt.kind)
    return Candidates(about, tuple(texts), before, thread.rows[0].text)


def _with_best(thread: Thread, rows: Sequence[Written]) -> Thread:
    """Mark the candidate that the next round builds on; the thread moves only to a usable one."""
    usable = [i for i, row in enumerate(rows) if row.unusable is None]
    # An unscored candidate loses to any scored one; among equals the first sampled is kept.
    best = max(usable, key=lambda i: (or_least(rows[i].score), -i), default=0)
    marked = [row.changed(chosen=i == best) for i, row in enumerate(rows)]
    current = marked[best] if marked[best].unusable is None else thread.current
    return replace(thread, current=current, rows=(*thread.rows, *marked))


def _answered(prompt: str, answer: str) -> Conversation:
    return (*asks(prompt), Message("assistant", answer))
