"""Which model a name means, and how it is opened: a plain transformers model in eval mode.

Weights are read from safetensors alone and no code of a model's repository is ever run. `resolve` and
`inventory` import no torch.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon import embedded
from solon.digest import digest, file_sha256
from solon.errors import UsageError
from solon.saving import first_line

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")

# For base models. An answer starts on a new line, so that it is tokenised as it is without its prompt.
NEXT_QUESTION = "\n\nUser:"  # Where a model that goes on in a transcript takes the user's part
TRANSCRIPT = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ {'user': 'User:\n', 'assistant': 'Assistant:\n'}.get(message['role'], '') }}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ModelSource:
    """A model that can be opened. `identity` stands for its content in the keys of the stages.

    For a hub model it is the commit, for a folder a digest that samples weights of more than 3 MiB: equal
    folders have equal identities, and a change between the sampled places goes unnoticed.

    `name` is short and holds no absolute path: it goes into rows, which must not depend on the place of
    the run. `path` is what transformers opens.
    """

    name: str
    path: str
    identity: str


@dataclass(frozen=True)
class InventoryEntry:
    """A model on this machine, or one that can be had. `size` in bytes, 0 if it is not fetched."""

    name: str
    about: str
    size: int
    folder: str

    def __str__(self) -> str:
        size = f"{self.size / 1e6:,.0f} MB" if self.size else "not fetched"
        return f"{self.name}: {self.about}, {size}, {self.folder}"


def resolve(name: str, fetch: bool = True) -> ModelSource:
    """What `name` means: "embedded", a folder, or a name on the Hugging Face hub.

    With `fetch` the model is on this machine afterwards. Without, nothing is downloaded and the identity
    is the same, save for a hub name that was never fetched: its commit is not known yet.

    Raises:
        UsageError: neither a folder with a model nor a possible hub name, or the hub does not have it.
        RunError: the embedded model cannot be fetched.
    """
    if name == embedded.NAME:
        folder = embedded.fetch() if fetch else embedded.folder()
        return ModelSource(name, str(folder), embedded.IDENTITY)
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(path)
    if get_close_matches(name, [embedded.NAME], cutoff=0.85):
        raise UsageError(f"model {name}: did you mean `embedded`?")
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(
            f"model {name}: no such folder. Use `embedded`, a folder that holds config.json, or a hub name."
        )
    return _hub(name, fetch)


def is_here(name: str) -> bool:
    """Whether `resolve` has nothing to fetch for this name."""
    if name == embedded.NAME:
        return embedded.fetched()
    return Path(name).expanduser().is_dir() or not _HUB_NAME.fullmatch(name) or _cached(name) is not None


def _local(folder: Path) -> ModelSource:
    folder = folder.resolve()
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"{folder}: an adapter, not a whole model. Merge it into its base model first.")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: holds no config.json. Give the folder that save_pretrained wrote.")
    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: holds no .safetensors file, and no other format is read. Convert it.")
    return ModelSource(f"{folder.parent.name}/{folder.name}", str(folder), folder_identity(folder))


def folder_identity(folder: Path) -> str:
    """Digest of a model folder: small files whole, weights by size and their first, middle and last MiB."""
    small = sorted(path for pattern in _SMALL_FILES for path in folder.glob(pattern))
    files = [[path.name, file_sha256(path)] for path in small]
    return digest([files, [_sampled(path) for path in sorted(folder.glob("*.safetensors"))]])


def _sampled(file: Path) -> list[str | int]:
    """Name, size and a digest of three places: gigabytes need not be read before every run."""
    size, state = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as opened:
        for start in (0, max(0, size // 2 - _MIB // 2), max(0, size - _MIB)):
            opened.seek(start)
            state.update(opened.read(_MIB))
    return [file.name, size, state.hexdigest()]


def _hub(name: str, fetch: bool) -> ModelSource:
    from huggingface_hub import try_to_load_from_cache

    if not fetch:
        cached = try_to_load_from_cache(name, "config.json")
        commit = Path(cached).parent.name if isinstance(cached, str) else None
        return ModelSource(name, name, f"{name}@{commit}" if commit else name)
    try:
        snapshot = _cached(name) or _snapshot(name)
    except Exception as error:
        # The client raises errors of its own, of the HTTP library and of its file transfer: no common base.
        raise UsageError(
            f"model {name}: no such folder or run, and the Hugging Face hub does not give it "
            f"({first_line(error)}). Check the name, the network, the room on the disk, and your access to "
            "gated models."
        ) from error
    local = _local(snapshot)
    return ModelSource(name, local.path, f"{name}@{snapshot.name}")


def _snapshot(name: str, cached_only: bool = False) -> Path:
    """Top-level files only: many repositories carry the same weights in other formats below."""
    from huggingface_hub import snapshot_download

    wanted, other = [*_SMALL_FILES, "*.safetensors"], ["*/*", "consolidated*"]
    return Path(
        snapshot_download(name, allow_patterns=wanted, ignore_patterns=other, local_files_only=cached_only)
    )


def _cached(name: str) -> Path | None:
    """The snapshot that is here already, if it is whole.

    It is preferred to the hub's newest: a new commit there, be it of a README, would else redo every stage
    of a run that only goes on.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = _snapshot(name, cached_only=True)
    except LocalEntryNotFoundError:
        return None
    return snapshot if _is_whole(snapshot) else None


def _is_whole(snapshot: Path) -> bool:
    """Whether config, tokenizer and all weights are there: other programs fetch parts of a repository."""
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    weights = {"model.safetensors"}
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        try:
            weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
    needed = all((snapshot / str(name)).is_file() for name in ("config.json", *weights))
    return needed and any((snapshot / name).is_file() for name in tokenizers)


def pick_device(setting: str) -> str:
    """The device of a recipe's setting: `auto` is CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        UsageError: the device is asked for by name and is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if setting == "auto":
        return next(device for device, usable in there.items() if usable)
    if not there.get(setting, False):
        raise UsageError(
            f"device: {setting} is asked for, and torch {torch.__version__} finds none. Use device: auto."
        )
    return setting


def pick_dtype(setting: str, device: str) -> "torch.dtype":
    """The type to compute in: `auto` is bfloat16 where the processor has instructions for it, else float32.

    Raises:
        UsageError: neither auto, float32 nor bfloat16.
    """
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if setting == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if setting not in named:
        raise UsageError(f"dtype: {setting} is not one of auto, float32, bfloat16.")
    return named[setting]


def _computes_bfloat16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _processor_flags())


def _processor_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The processor's flags as Linux lists them; none where there is no such list."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def load_model(source: ModelSource, device: str, dtype: "torch.dtype") -> Any:
    """A transformers causal language model on the device, in eval mode.

    Raises:
        UsageError: it does not load, is not in safetensors, or lacks weights.
        RunError: the embedded model cannot be fetched.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        with embedded.quiet_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                _ready(source),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(source, "safetensors model", error) from error
    # transformers fills what a file lacks with random numbers and only warns.
    if info["missing_keys"] or info["mismatched_keys"]:
        first = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))[0]
        raise UsageError(f"{source.path}: the weights do not fit config.json ({first}). Save the model anew.")
    if device.startswith("cuda"):
        _leave_cudnn_attention()
    return model.to(device).eval()


def _leave_cudnn_attention() -> None:
    """Its plans are made anew for every shape, and generation has another shape at every token."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer, with a chat template, an end token and a pad token.

    A tokenizer without a chat template gets a plain transcript, and a warning says so.

    Raises:
        UsageError: it does not load, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(_ready(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unloadable(source, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"{source.path}: the tokenizer has no end token. Set eos_token in its config.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        _log.warning("%s has no chat template: a plain User/Assistant transcript is used", source.name)
        tokenizer.chat_template = TRANSCRIPT
    return tokenizer


def _ready(source: ModelSource) -> str:
    """The path to open; an embedded model that was resolved without fetching is fetched now."""
    return str(embedded.fetch()) if source.name == embedded.NAME else source.path


def _unloadable(source: ModelSource, what: str, error: Exception) -> UsageError:
    return UsageError(
        f"{source.path}: no {what} that transformers can load ({first_line(error)}). "
        "Give a folder that save_pretrained wrote, a hub name, or `embedded`."
    )


def inventory() -> Sequence[InventoryEntry]:
    """The embedded model, and the models in the Hugging Face cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    folder = embedded.folder()
    size = sum(file.stat().st_size for file in folder.glob("*")) if embedded.fetched() else 0
    about = f"{embedded.TITLE}, {embedded.LICENCE}"
    entries = [InventoryEntry(embedded.NAME, about, size, str(folder))]
    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except CacheNotFound:
        return entries
    found = [InventoryEntry(r.repo_id, "Hugging Face cache", r.size_on_disk, str(r.repo_path)) for r in repos]
    return entries + sorted(found, key=lambda entry: entry.name)
