"""What reinforcement asks, told before its first step from openings: first words of the SL model's answers.

Whether an answer refuses is settled in its first words, so few tokens show on which prompts the model is
undecided. From those reinforcement learns most whether to refuse; a few of them, repeated, would be learnt by
heart. Openings are sampled as PPO samples, and scored as it scores, so that what they say holds for it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from solon.engines.base import used_by
from solon.models import load_model, load_tokenizer, pick_device, pick_dtype
from solon.pipeline import Inputs
from solon.processes import this_process, wait_until
from solon.recipe import Recipe
from solon.records import Prompt, PromptKind, Written
from solon.stages.balance import balanced_share, pushes
from solon.stages.common import choose_fresh, engine_for, in_batches, several, sl_model
from solon.stages.prompting import Mixture, undecided
from solon.stages.shaping import open_reward
from solon.store import Workspace, write_atomically, write_rows
from solon.training.encoding import Encoder
from solon.training.reward_model import load_reward_model
from solon.training.rollout import Episode, Reward, shaped
from solon.training_settings import Reinforce

OPENINGS, MIXTURE = "openings.parquet", "mixture.json"


def mixture(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> Mixture:
    """The mixture that the recipe asks for. It is told once, by the first process, and kept in the folder.

    Raises RunError as `balanced_share`.
    """
    share, file = recipe.reinforce.helpful_share, workspace.folder / MIXTURE
    if share != "balanced" and not recipe.reinforce.undecided:
        return Mixture(share)
    if not this_process().main:
        wait_until(file.exists)
    elif not file.exists():
        write_atomically(file, json.dumps(asdict(_told(recipe, inputs, workspace))))
    return Mixture(**json.loads(file.read_text(encoding="utf-8")))


def _told(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> Mixture:
    settings = recipe.reinforce
    rows = _sampled(recipe, inputs, workspace)
    write_rows(workspace.folder / OPENINGS, Written, rows)
    wanted, share = undecided(rows), settings.helpful_share
    if share == "balanced":
        tried = Counter({row.prompt_id: row.prompt_kind for row in rows}.values())
        ids = {prompt for of_kind in wanted.values() for prompt in of_kind}
        telling = [row for row in rows if row.prompt_id in ids]
        found = pushes(telling, _rewards(recipe, inputs, telling), tried)
        share = balanced_share(found, settings.undecided > 0)
    return Mixture(share, wanted if settings.undecided else {})


def _sampled(recipe: Recipe, inputs: Inputs, workspace: Workspace) -> list[Written]:
    settings, wanted = recipe.reinforce, recipe.reinforce.openings
    counts: dict[PromptKind, int] = {
        "red_team": wanted.prompts,
        "helpful": wanted.helpful if settings.helpful_share else 0,
    }
    prompts = choose_fresh(recipe, inputs.rows("red_team", Prompt), counts)
    engine = engine_for(recipe, sl_model(inputs))

    def work(batch: Sequence[Prompt]) -> list[Written]:
        return several(engine, batch, settings.group, settings.sampling, "opening", recipe.seed)

    batches = [(f"opening-{name}", items) for name, items in in_batches(prompts, wanted.batch)]
    return list(workspace.batches(batches, Written, work, "openings", used_by(engine)))


def _rewards(recipe: Recipe, inputs: Inputs, rows: Sequence[Written]) -> list[float]:
    if not rows:
        return []
    source = sl_model(inputs)
    device, tokenizer = pick_device(recipe.device), load_tokenizer(source)
    trunk = load_model(source, device, pick_dtype(recipe.dtype, device))
    model = load_reward_model(inputs.folders["reward"] / "model", trunk, tokenizer)
    return scored(open_reward(recipe, inputs, model), rows, Encoder(tokenizer), recipe.reinforce)


def scored(reward: Reward, rows: Sequence[Written], encoder: Encoder, settings: Reinforce) -> list[float]:
    """The rewards of openings, as PPO would give them."""
    episodes = [_episode(encoder, row, settings.sampling.max_tokens) for row in rows]
    rewards: list[float] = shaped(reward(episodes), episodes, settings).tolist()
    return rewards


def _episode(encoder: Encoder, row: Written, most: int) -> Episode:
    whole = encoder.encode(row.prompt, row.text, row.finish, len(encoder.prompt(row.prompt)) + most)
    finished = bool(whole.answer) and whole.answer[-1] == encoder.end
    return Episode.of(whole.prompt, whole.answer, finished, row.prompt_kind, row.text)
