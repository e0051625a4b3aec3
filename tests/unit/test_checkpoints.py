"""The training state on the disk: exact, atomic, and refused when damaged or foreign."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from solon.errors import RunError
from solon.training import checkpoints
from solon.training.checkpoints import load, optimiser_tensors, restore_optimiser, save


def stepped(steps: int) -> tuple[nn.Module, torch.optim.AdamW, list[str]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        torch.autograd.backward(model(torch.ones(1, 3)).square().sum())
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer, [name for name, _ in model.named_parameters()]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "absent") is None


def test_round_trip_is_exact(tmp_path: Path) -> None:
    tensors = {
        "float": torch.tensor([0.1, -0.0, math.inf]),
        "bfloat": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "gradient": torch.ones(2, requires_grad=True),
        "turned": torch.arange(6).reshape(2, 3).T,
    }
    meta = {"step": 3, "beta": 0.1 + 0.2, "names": ["å"], "none": None}
    save(tmp_path / "new" / "folder", tensors, meta)
    found = load(tmp_path / "new" / "folder")
    assert found is not None
    assert found[1] == meta
    assert found[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[0][name].dtype == tensor.dtype
        assert torch.equal(found[0][name], tensor)


def test_tied_tensors_and_views_are_saved_each(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save(tmp_path, {"a": weight, "tied": weight, "row": weight[1]}, {})
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["tied"], weight)
    assert found[0]["row"].tolist() == [3.0, 4.0, 5.0]


def test_saving_again_replaces_and_leaves_one_file(tmp_path: Path) -> None:
    save(tmp_path, {"x": torch.zeros(2)}, {"step": 1})
    save(tmp_path, {"y": torch.ones(1)}, {"step": 2})
    found = load(tmp_path)
    assert found is not None
    assert (list(found[0]), found[1]) == (["y"], {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.STATE_FILE]


def test_a_kill_while_writing_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"x": torch.zeros(2)}, {"step": 1})

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"torn")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        save(tmp_path, {"x": torch.ones(2)}, {"step": 2})
    found = load(tmp_path)
    assert found is not None
    assert found[1] == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.STATE_FILE]


def test_meta_that_is_not_json_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path, {}, {"path": tmp_path})
    assert load(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, keep: int) -> None:
    save(tmp_path, {"x": torch.zeros(20)}, {"step": 1})
    path = tmp_path / checkpoints.STATE_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match=rf"{checkpoints.STATE_FILE}: not a readable.*Remove"):
        load(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"meta": "{"}])
def test_a_file_without_our_header_is_an_error(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / checkpoints.STATE_FILE, metadata=metadata)
    with pytest.raises(RunError, match="not a readable training state"):
        load(tmp_path)


def test_optimiser_round_trip_is_exact() -> None:
    _, optimizer, names = stepped(3)
    tensors = optimiser_tensors(optimizer, names)
    assert sorted(tensors) == sorted(
        f"optimiser/{moment}/{name}" for moment in ("step", "exp_avg", "exp_avg_sq") for name in names
    )
    _, fresh, _ = stepped(0)
    restore_optimiser(fresh, {**tensors, "weight": torch.zeros(1)}, names)
    again = optimiser_tensors(fresh, names)
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again["optimiser/step/weight"].item() == 3.0


@pytest.mark.parametrize("restored", [False, True])
def test_taken_moments_do_not_move_with_the_optimiser(restored: bool) -> None:
    model, optimizer, names = stepped(1)
    taken = optimiser_tensors(optimizer, names)
    before = {key: tensor.clone() for key, tensor in taken.items()}
    if restored:
        restore_optimiser(optimizer, taken, names)
    torch.autograd.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    assert optimiser_tensors(optimizer, names)["optimiser/step/weight"].item() == 2.0
    assert all(torch.equal(taken[key], before[key]) for key in taken)


def test_before_the_first_step_there_is_no_state() -> None:
    _, optimizer, names = stepped(0)
    assert optimiser_tensors(optimizer, names) == {}
    _, later, _ = stepped(2)
    restore_optimiser(later, {}, names)
    assert optimiser_tensors(later, names) == {}


def test_a_parameter_without_gradient_has_no_state_and_keeps_none() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([unused, used])
    torch.autograd.backward(used.sum())
    optimizer.step()
    tensors = optimiser_tensors(optimizer, ["unused", "used"])
    assert {key.rsplit("/", 1)[1] for key in tensors} == {"used"}
    fresh = torch.optim.AdamW([unused, used])
    restore_optimiser(fresh, tensors, ["unused", "used"])
    assert list(fresh.state) == [used]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser/exp_avg/weight": None}, "weight has no exp_avg"),
        ({"optimiser/exp_avg_sq/bias": torch.zeros(3)}, r"exp_avg_sq of bias is \[3\], not \[2\]"),
        ({"optimiser/step/other": torch.zeros(())}, "optimiser/step/other"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(
    change: dict[str, torch.Tensor | None], message: str
) -> None:
    _, optimizer, names = stepped(2)
    tensors = {k: v for k, v in {**optimiser_tensors(optimizer, names), **change}.items() if v is not None}
    _, other, _ = stepped(1)
    before = optimiser_tensors(other, names)
    with pytest.raises(RunError, match=message):
        restore_optimiser(other, tensors, names)
    after = optimiser_tensors(other, names)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("names", [["weight"], ["weight", "weight"], ["weight", "bias", "more"]])
def test_names_must_match_the_parameters(names: list[str]) -> None:
    _, optimizer, _ = stepped(1)
    with pytest.raises(ValueError, match="names for 2 parameters"):
        optimiser_tensors(optimizer, names)


def test_the_state_of_another_kind_of_optimiser_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], amsgrad=True)
    torch.autograd.backward(parameter.sum())
    optimizer.step()
    with pytest.raises(ValueError, match="max_exp_avg_sq"):
        optimiser_tensors(optimizer, ["p"])
