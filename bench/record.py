"""How every bench reports: one JSON line a figure, printed and kept in bench/results/<bench>.jsonl."""

import argparse
import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """The processor, its cores and the accelerator, as far as a figure depends on them."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _processor(file: Path = Path("/proc/cpuinfo")) -> str:
    if not file.exists():
        return platform.processor() or platform.machine()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that a figure depends on; Solon's own also where it is not installed."""
    from importlib.metadata import version

    from solon import __version__

    return {"solon": __version__, **{name: version(name) for name in ("torch", "transformers", *packages)}}


def peak_memory_mb(device: str = "cpu") -> float:
    """The most so far, in MiB: resident memory of this process, or tensors on a GPU.

    From /proc where there is one: what `getrusage` says also counts the process that started this one.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_options(parser: argparse.ArgumentParser) -> None:
    """Let a bench be told where and in which type to compute."""
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")


def report(
    bench: str, name: str, solon: float | None, peer: float | None, ratio: float | None, **more: Any
) -> None:
    """Print and keep one figure."""
    figure = {"name": name, "solon": solon, "peer": peer, "ratio": ratio, **more}
    line = json.dumps({**figure, "machine": machine(), "versions": versions()})
    print(line, flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{bench}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
