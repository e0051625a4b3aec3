"""A disk without room, met with the real libraries: one clear error, and nothing half written."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from solon import embedded
from solon.errors import RunError, UsageError
from solon.models import load_model, load_tokenizer, resolve
from solon.saving import cannot_write, saving, writing
from solon.training import reward_model as reward_models
from solon.training.adapters import add_adapter, save_adapter, save_merged
from solon.training.reward_model import new_reward_model
from solon.training_settings import Lora


@contextmanager
def _small_disk(most: int = 2048) -> Iterator[None]:
    """No file may become larger; Python ignores the signal, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _save_text(folder: Path, tokenizer: Any) -> None:
    (folder / "a.txt").write_text("a" * 10_000)


def _save_tensors(folder: Path, tokenizer: Any) -> None:
    save_file({"a": torch.zeros(10_000)}, folder / "a.safetensors")


def _save_pickled(folder: Path, tokenizer: Any) -> None:
    torch.save({"a": torch.zeros(10_000)}, folder / "a.pt")


def _save_tokenizer(folder: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("save", [_save_text, _save_tensors, _save_pickled, _save_tokenizer])
def test_every_library_has_one_error_and_the_old_folder_stays(
    save: Callable[[Path, Any], None], tmp_path: Path, tiny_model_folder: Path
) -> None:
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    folder = tmp_path / "model"
    with saving(folder) as temporary:
        temporary.mkdir()
        (temporary / "old").write_text("old")

    def again() -> None:
        with _small_disk(), saving(folder) as temporary:
            temporary.mkdir()
            save(temporary, tokenizer)

    with pytest.raises(RunError, match=r"model: cannot be written \(.+\)\. Free some space"):
        again()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def test_models_adapters_and_reward_models(tmp_path: Path, tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    model, tokenizer = load_model(source, "cpu", torch.float32), load_tokenizer(source)
    adapted = add_adapter(load_model(source, "cpu", torch.float32), Lora(), 0, "default")
    reward = new_reward_model(source, "cpu", torch.float32, Lora(), 0)
    calls: list[Callable[[Path], None]] = [
        lambda folder: save_merged(model, tokenizer, folder, torch.float32),
        lambda folder: save_adapter(adapted, folder),
        lambda folder: reward.save(folder, tokenizer),
    ]
    for call in calls:
        with _small_disk(), pytest.raises(RunError, match="cannot be written"):
            call(tmp_path / "out")
        assert not (tmp_path / "out" / "config.json").exists()
        assert not (tmp_path / "out.partial").exists()


def test_a_reward_model_whose_head_finds_no_room(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(reward_models, "save_file", full)
    reward = new_reward_model(resolve(str(tiny_model_folder)), "cpu", torch.float32, Lora(), 0)
    with pytest.raises(RunError, match=r"model: cannot be written \(I/O error: No space left"):
        reward.save(tmp_path / "model", load_tokenizer(resolve(str(tiny_model_folder))))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "model-00009.safetensors").touch()
    with saving(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "model.safetensors").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "model",
        "model/model.safetensors",
    ]


def test_faults_of_our_own_stay_what_they_are(tmp_path: Path) -> None:
    for error in (ValueError("x"), RuntimeError("shapes do not fit"), RunError("known (os error 28)")):
        assert not cannot_write(error)
        with pytest.raises(type(error)), writing(tmp_path):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
    ],
)
def test_the_embedded_model_names_its_cache(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(gguf: Path, target: Path) -> None:
        raise error

    monkeypatch.setenv("SOLON_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_installed", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(embedded, "_convert", full)
    with pytest.raises(RunError, match=r"cannot be written to .+No space left.+Set SOLON_CACHE"):
        embedded.fetch()


# --- the command line's words for them -----------------------------------------------------------------


def _explained(error: Exception) -> Any:
    from solon.cli import _explain

    return _explain(error)


def test_errors_of_the_machine_in_the_words_of_the_house() -> None:
    cases: list[tuple[Exception, type[Exception], str]] = [
        (OSError(28, "No space left on device", "/runs/a"), RunError, "the disk is full (/runs/a)"),
        (
            OSError(5, "Input/output error", "/runs/a"),
            RunError,
            "/runs/a: Input/output error. Check the disk",
        ),
        (OSError("no file named x"), RunError, "no file named x. Check"),
        (PermissionError(13, "Permission denied", "/runs/a"), UsageError, "/runs/a: permission denied"),
        (
            NotADirectoryError(20, "Not a directory", "/f/a"),
            UsageError,
            "/f/a: Not a directory. Choose another",
        ),
        (OSError(36, "File name too long", "x" * 300), UsageError, "File name too long. Choose another path"),
        (SafetensorError("Error while serializing"), RunError, "cannot be read or written (Error while"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), RunError, "Free some space"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"), RunError, "Lower batch_tokens"),
    ]
    for error, kind, words in cases:
        known = _explained(error)
        assert type(known) is kind
        assert words in str(known)
        assert "\n" not in str(known)
    assert _explained(ValueError("a fault of our own")) is None
    assert _explained(RuntimeError("a fault of our own")) is None


def test_the_command_line_asks_without_importing() -> None:
    code = (
        "import sys, solon.cli; solon.cli._explain(RuntimeError('x')); "
        "sys.exit(bool({'torch', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
