"""Models that many tests share. Nothing here reaches the Hugging Face hub."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models this small are slower on several threads; processes that the tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from solon.engines.local import LocalEngine, open_engine
from solon.models import ModelSource, resolve
from tests.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_engine(tiny_model_folder: Path) -> LocalEngine:
    """In float32 on the CPU, where results must not depend on the batch."""
    return open_engine(resolve(str(tiny_model_folder)), "cpu", torch.float32, 8192)


@pytest.fixture(scope="session")
def embedded_source() -> ModelSource:
    """The embedded model; fetched once into the user's cache."""
    return resolve("embedded")
