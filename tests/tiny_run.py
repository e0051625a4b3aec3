"""A whole run small enough for a test: a random two-layer model, a made constitution, few prompts."""

import json
from pathlib import Path
from typing import Any

import yaml

from solon.pipeline import Run
from solon.progress import Reporter
from solon.recipe import load_recipe

_THINGS = ("boats", "clocks", "bread", "maps", "bridges", "lamps", "gardens", "radios", "paper", "stones")
_VERBS = ("break", "steal", "burn", "sell", "hide", "forge")


def constitution(name: str = "tiny") -> dict[str, Any]:
    """Three training and two evaluation principles, with enough comparisons for the probe."""
    principles = [
        {
            "id": f"p{i}",
            "about": f"rule {i}",
            "critique": f"Say what breaks rule {i}.",
            "revision": f"Rewrite it to follow rule {i}.",
            "question": f"Which answer follows rule {i}?",
            "purpose": "training" if i < 3 else "evaluation",
        }
        for i in range(5)
    ]
    comparisons = [
        {
            "principle": f"p{i}",
            "prompt": f"How do I {_VERBS[k]} {_THINGS[k + i]}?",
            "better": f"Please leave the {_THINGS[k + i]} alone, it is kind number {k}.",
            "worse": f"Take the {_THINGS[k + i]} quickly and {_VERBS[k]} them, step {k}.",
        }
        for i in range(5)
        for k in range(5)
    ]
    revisions = [
        {
            "principle": "p0",
            "prompt": f"How do I {verb} a clock?",
            "answer": f"You {verb} it.",
            "critique": f"It tells how to {verb}.",
            "revision": f"A clock is better mended than made to {verb}.",
        }
        for verb in _VERBS[:3]
    ]
    shown = {"revisions": revisions, "comparisons": comparisons}
    return {"name": name, "version": "1", "principles": principles, "demonstrations": shown}


def prompts(kind: str) -> list[dict[str, str]]:
    opening = "How can I" if kind == "red_team" else "What is the best way to care for"
    if kind == "red_team":
        return [
            {"text": f"{opening} {v} {t} without paying?", "category": v} for v in _VERBS for t in _THINGS[:5]
        ]
    return [
        {"text": f"{opening} {a} and {b} at home?", "category": a} for a in _THINGS[:5] for b in _THINGS[5:]
    ]


def recipe(model: Path) -> dict[str, Any]:
    short = {"max_tokens": 10, "temperature": 1.0}
    optimiser = {"learning_rate": 1e-3, "batch": 4, "save_every": 2}
    return {
        "name": "tiny",
        "seed": 3,
        "model": str(model),
        "constitution": "constitution.yaml",
        "device": "cpu",
        "dtype": "float32",
        "red_team": {
            "sources": [{"file": "red_team.jsonl"}],
            "helpful": [{"file": "helpful.jsonl"}],
            "written": 3,
            "sampling": short,
            "max_similarity": 0.9,
        },
        "revise": {
            "prompts": 6,
            "helpful": 4,
            "candidates": 2,
            "answer": short,
            "critic": short,
            "revision": short,
            "batch": 4,
        },
        "finetune": {"trim": False, "optimiser": {**optimiser, "epochs": 1}},
        "sample": {"prompts": 8, "helpful": 4, "answers": 3, "sampling": short, "batch": 4},
        "label": {"pairs": 3, "batch": 4},
        "judge": {"folds": 3},
        "reward": {"heldout": 0.4, "optimiser": optimiser},
        "reinforce": {
            "steps": 3,
            "episodes": 4,
            "minibatch": 2,
            "sampling": short,
            "undecided": 0.5,
            "openings": {"prompts": 5, "helpful": 3, "batch": 3},
            "missing_end_score": None,  # It hardly ever ends: all scores would be the same
            "guard": {"every": 2, "prompts": 8},
        },
        "evaluate": {"prompts": 4, "helpful": 3, "max_tokens": 8, "bootstrap": 100, "batch": 4},
    }


def write(folder: Path, model: Path, **changes: Any) -> Path:
    """Write recipe, constitution and prompts into `folder`; the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("red_team", "helpful"):
        lines = [json.dumps(prompt) for prompt in prompts(kind)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution(), sort_keys=False))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe(model), **changes}, sort_keys=False))
    return path


def open_run(path: Path, folder: Path, *overrides: str) -> Run:
    loaded, found = load_recipe(path, overrides)
    return Run(loaded, found.parent, folder, Reporter(quiet=True))
