"""The virtual environment of TRL 1.12.0, the last release with PPO, made when a bench first asks for it."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

TRL = "1.12.0"
_FOLDER = Path(__file__).resolve().parent.parent / ".venv-trl"


def trl_python() -> Path:
    """Its interpreter, beside the same torch and transformers as here."""
    python, stamp = _FOLDER / "bin" / "python", _FOLDER / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", _FOLDER], check=True)
        wanted = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted, f"trl=={TRL}"], check=True)
        stamp.touch()
    return python


def run(side: Literal["solon", "trl"], script: str, config: Path) -> None:
    """Run a script of this folder in a process of its own, there or here.

    Raises SystemExit, with the end of what it said, if it fails.
    """
    python = trl_python() if side == "trl" else Path(sys.executable)
    command = [python, Path(__file__).resolve().parent / script, config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-4000:]}")
