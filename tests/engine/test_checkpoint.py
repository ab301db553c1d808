"""States of an interrupted training: plain numbers with a digest, resumed bitwise or not at all."""

import os
import pickle
import resource
import shutil
import stat
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_models as toy

from safealign_utils import train
from safealign_utils.engine import checkpoint, distributed, live
from safealign_utils.methods import token_controls
from safealign_utils.methods.selective import TopTokens

SETTING = dict(beta=0.5, steps=12, batch_size=4, learning_rate=5e-3, seed=0)
CASES = {
    "float32": {},
    "float64": dict(dtype="float64"),
    "accumulation": dict(accumulate=2),
    "LoRA": dict(lora=2),
    "LoRA in bfloat16": dict(lora=2, dtype="bfloat16"),
    "bfloat16": dict(dtype="bfloat16"),
    "checkpointing": dict(checkpointing=True),
    "selective tokens": dict(token_lever=TopTokens(0.4)),
    "random tokens": dict(token_lever=TopTokens(0.4, score=token_controls.Random())),
}


def one(dtype="float32", **changes):
    policy = toy.policy_of("qwen2").to(dtype)
    return train.align(policy, toy.made_tokens(), **SETTING | changes)


def interrupted(monkeypatch, after, **changes):
    """Break a run off after a step; its states lie where they were written."""
    add = checkpoint.Checkpoint.add

    def adding(self, *words):
        add(self, *words)
        if self.step == after:
            raise toy.Stop

    with monkeypatch.context() as patch, pytest.raises(toy.Stop):
        patch.setattr(checkpoint.Checkpoint, "add", adding)
        one(save_every=5, **changes)


def resumed(monkeypatch, **changes):
    """(run, the step that it went on from)."""
    starts, begin = [], train._progress
    with monkeypatch.context() as patch:
        patch.setattr(
            train, "_progress", lambda n, first, s: (starts.append(first), begin(n, first, s))[1]
        )
        run = one(save_every=5, **changes)
    return run, starts[-1]


def same(one, other):
    """Bitwise: every weight, every number of the log."""
    pairs = zip(one.policy.model.parameters(), other.policy.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and one.log.equals(other.log)


def state_of(cache, step=5):
    found = cache.glob(f"partial/*/state-{step:08d}")
    (state,) = (path for path in found if path.parent.name != "other")
    return state


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_bitwise_the_same(case, fresh_cache, monkeypatch):
    straight = one(use_cache=False, **CASES[case])
    interrupted(monkeypatch, 8, **CASES[case])
    run, start = resumed(monkeypatch, **CASES[case])
    assert start == 5 and same(run, straight) and not list(fresh_cache.glob("partial/*"))


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# every name under which accelerate and torch keep a pickle of a state
PICKLES = (
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "custom_checkpoint_1.pkl",
    "optimizer.bin",
    "pytorch_model.bin",
    "scheduler.bin",
    ".metadata",
    "0.safetensors",
)


@pytest.mark.parametrize("name", PICKLES)
def test_a_planted_pickle_runs_nothing(name, fresh_cache, monkeypatch, tmp_path):
    """In the state of an interrupted training: the state is removed, and nothing of it is used."""
    straight = one(use_cache=False)
    interrupted(monkeypatch, 8)
    ran = tmp_path / "ran"
    (state_of(fresh_cache) / name).write_bytes(pickle.dumps(Planted(ran)))
    run, start = resumed(monkeypatch)
    assert not ran.exists() and start == 0 and same(run, straight)
    pickle.loads(pickle.dumps(Planted(ran)))
    assert ran.exists(), "the plant works where it is read"


def flipped(place):
    def damage(state):
        file = state / "0.safetensors"
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return damage


def cut(share):
    def damage(state):
        file = state / "0.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return damage


def linked(state):
    (state / "0.safetensors").rename(state.parent / "elsewhere")
    (state / "0.safetensors").symlink_to(state.parent / "elsewhere")


def of_another_training(state):
    """Whole, with a digest, and of a training that differs in its seed alone."""
    other = state.parents[1] / "other" / state.name / "0.safetensors"
    shutil.copy(other, state / "0.safetensors")


DAMAGES = {
    "gone": lambda state: (state / "0.safetensors").unlink(),
    "the folder is empty": lambda state: [file.unlink() for file in state.iterdir()],
    "empty": cut(0),
    "a folder": lambda state: (shutil.rmtree(state), (state / "0.safetensors").mkdir(parents=True)),
    "a link": linked,
    "a pipe": lambda state: (
        (state / "0.safetensors").unlink(),
        os.mkfifo(state / "0.safetensors"),
    ),
    "one more": lambda state: shutil.copy(state / "0.safetensors", state / "1.safetensors"),
    "a note": lambda state: (state / "note.txt").write_text("mine"),
    "another training's": of_another_training,
    **{f"cut at {share}": cut(share) for share in (0.001, 0.1, 0.5, 0.9, 0.999)},
    **{f"flipped at {place}": flipped(place) for place in np.linspace(0, 1, 21).round(3)},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(cache with two states of a run, steps 5 and 10, and one of another; the run without a stop)."""
    cache, patch = tmp_path_factory.mktemp("kept"), pytest.MonkeyPatch()
    patch.setenv("SAFEALIGN_CACHE", str(cache))
    try:
        straight = one(use_cache=False)
        interrupted(patch, 11, seed=1)
        (other,) = cache.glob("partial/*")
        interrupted(patch, 8)
        (first,) = cache.glob("partial/*/state-00000005")
        shutil.copytree(first, cache / "first")
        interrupted(patch, 11)
        (second,) = (path for path in cache.glob("partial/*/state-*") if path.parent != other)
        shutil.move(cache / "first", second.with_name("state-00000005"))
        other.rename(other.with_name("other"))
    finally:
        patch.undo()
    return cache, straight


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_gives_way_to_the_one_before(
    damage, kept, fresh_cache, monkeypatch, capsys
):
    """And both damaged to a start anew; a third time nothing of them is left."""
    shutil.copytree(kept[0], fresh_cache)
    DAMAGES[damage](state_of(fresh_cache, 10))
    run, start = resumed(monkeypatch)
    said = capsys.readouterr().err
    assert start == 5 and same(run, kept[1]) and said.count("cannot be resumed") == 1, said
    shutil.rmtree(fresh_cache)
    shutil.copytree(kept[0], fresh_cache)
    for step in (10, 5):
        if damage != "another training's":
            DAMAGES[damage](state_of(fresh_cache, step))
    shutil.rmtree(fresh_cache / "partial" / "other")
    if damage != "another training's":
        run, start = resumed(monkeypatch)
        assert start == 0 and same(run, kept[1]) and not list(fresh_cache.glob("partial/*"))


def test_an_undamaged_last_state_is_the_one_that_is_taken(kept, fresh_cache, monkeypatch):
    shutil.copytree(kept[0], fresh_cache)
    run, start = resumed(monkeypatch)
    assert start == 10 and same(run, kept[1])


def test_a_damaged_state_is_removed_at_once(kept, fresh_cache, monkeypatch):
    """Not when the training ends, which it may never do."""
    shutil.copytree(kept[0], fresh_cache)
    damaged = state_of(fresh_cache, 10)
    cut(0.5)(damaged)

    def stop(*words):
        raise toy.Stop

    monkeypatch.setattr(train, "_progress", stop)
    with pytest.raises(toy.Stop):
        one(save_every=5)
    assert not damaged.exists() and state_of(fresh_cache, 5).exists()


def test_a_state_that_cannot_be_removed_fails_nothing(kept, fresh_cache, monkeypatch):
    shutil.copytree(kept[0], fresh_cache)
    for step in (5, 10):
        cut(0.5)(state_of(fresh_cache, step))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *words, **options: None)
    run, start = resumed(monkeypatch)
    assert start == 0 and same(run, kept[1])


def test_states_are_for_their_owner_alone_and_flushed(fresh_cache, monkeypatch):
    flushed, sync = [], os.fsync
    names = lambda file: os.readlink(f"/proc/self/fd/{file}")
    monkeypatch.setattr(live.os, "fsync", lambda file: (flushed.append(names(file)), sync(file)))
    interrupted(monkeypatch, 8)
    state = state_of(fresh_cache)
    for folder in (fresh_cache, state.parent, state):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    beside = [path.replace(str(state.parent), "") for path in flushed]
    assert [path.rpartition("/")[2] for path in beside][0] == "0.safetensors", beside
    assert ".partial" in beside[1] and beside[2] == "", "the file, its folder, and where it lies"
    assert list(state.parent.iterdir()) == [state]


def test_the_state_of_several_processes_is_put_together(monkeypatch):
    """Shares of a tensor, in the order of the processes; what all hold is taken once."""
    files = [
        dict(w=np.ones((2, 3)), step=np.array(7.0)),
        dict(w=np.zeros((1, 3)), step=np.array(7.0)),
    ]
    for file in files:
        parts = {name: shape_only(array.shape) for name, array in file.items()}
        file["get_slice"] = parts.get
    opened = [type("File", (), dict(get_slice=file["get_slice"])) for file in files]
    assert checkpoint._shape(opened, "w", ["w"]) == (3, 3)
    assert checkpoint._shape(opened, "step", ["w"]) == () and distributed.count() == 1


def shape_only(shape):
    return type("Slice", (), dict(get_shape=lambda self: list(shape)))()


@pytest.mark.skipif(os.getuid() != 0, reason="another user needs root")
def test_the_state_of_another_user_is_neither_read_nor_needed(monkeypatch):
    """In a cache that both may write to: the training goes on without a state on disk."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("SAFEALIGN_CACHE", folder)
        straight = one(use_cache=False)
        interrupted(monkeypatch, 8)
        for path in Path(folder).iterdir():
            path.chmod(0o777)
        os.seteuid(65534)
        try:
            run, start = resumed(monkeypatch)
        finally:
            os.seteuid(0)
        assert start == 0 and same(run, straight) and state_of(Path(folder)).exists()
        assert len(list(Path(folder).glob("policy/*"))) == 1


@pytest.mark.parametrize("limit", [0, 1, 10_000])
def test_a_full_disk_costs_the_state_and_nothing_else(limit, fresh_cache, monkeypatch, capsys):
    """Files may have `limit` bytes; the state of before stays, and the weights are the same."""
    straight = one(use_cache=False)
    interrupted(monkeypatch, 8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        interrupted(monkeypatch, 11)
        run, start = resumed(monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert start == 5 and same(run, straight) and not list(fresh_cache.glob("policy/*.safetensors"))
    assert not list(fresh_cache.rglob(".*")), "nothing half-written stays"


# ---------------------------------------------------------------- one process here, several there
def test_what_accelerate_is_asked_for(monkeypatch):
    """The policy's device and precision; under FSDP the module computes in its own."""
    asked, policy = [], types.SimpleNamespace(bf16=False, device=torch.device("cpu"))

    def made(**words):
        asked.append((words, os.environ.get("ACCELERATE_TORCH_DEVICE")))

    monkeypatch.setattr(checkpoint, "Accelerator", made)
    monkeypatch.setattr(distributed, "check_environment", lambda: None)
    monkeypatch.setattr(distributed, "join", lambda: None)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    low = types.SimpleNamespace(bf16=True, device=torch.device("cuda"))
    for one in (policy, low):
        checkpoint.accelerator_for(one)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for version in (None, "1"):
        monkeypatch.delenv("FSDP_VERSION", raising=False)
        if version:
            monkeypatch.setenv("FSDP_VERSION", version)
        with pytest.raises(ValueError, match="write fsdp_version: 2"):
            checkpoint.accelerator_for(policy)
    monkeypatch.setenv("FSDP_VERSION", "2")
    for count in (1, 2):
        monkeypatch.setattr(distributed, "count", lambda count=count: count)
        checkpoint.accelerator_for(low)
    wanted = [(True, "no"), (False, "bf16"), (False, "bf16"), (False, "no")]
    assert [(w["cpu"], w["mixed_precision"]) for w, _ in asked] == wanted
    assert [device for _, device in asked] == ["cpu", "cuda", "cuda", "cuda"]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


class Part:
    """What FSDP leaves of a tensor on one process."""

    def __init__(self, whole):
        self.whole = whole

    def full_tensor(self):
        return self.whole


def test_a_sharded_module_is_put_together(monkeypatch):
    net, new = (torch.nn.Linear(2, 1, bias=False) for _ in range(2))
    one = types.SimpleNamespace(is_fsdp2=True, unwrap_model=lambda *a, **b: pytest.fail("whole"))
    for state in ({"weight": Part(net.weight.data)}, {"weight": net.weight.data}):
        torch.nn.init.zeros_(new.weight)
        monkeypatch.setattr(checkpoint.adapters, "trained_state", lambda _, state=state: state)
        assert checkpoint.whole(one, net, lambda: new) is new and torch.equal(
            new.weight, net.weight
        )
    asked = []
    two = types.SimpleNamespace(is_fsdp2=False, unwrap_model=lambda *a, **b: asked.append((a, b)))
    checkpoint.whole(two, net, None)
    assert asked == [((net,), {"keep_fp32_wrapper": False})]


def test_when_a_state_is_due(monkeypatch, tmp_path):
    """Every so many steps, or every 30 s, more seldom where that is over a twentieth of the time;
    never after the last step, never without a folder."""
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def state(folder, every, step=3, took=0.0):
        accelerator = types.SimpleNamespace(is_fsdp2=False, unwrap_model=lambda net: net)
        one = checkpoint.Checkpoint(accelerator, None, None, None, folder, every)
        assert (one.step, one.log, one.took) == (0, [], 0.0)
        one.step, one.took = step, took
        return one

    assert [state(tmp_path, 3, step).due(9) for step in (1, 2, 3, 4, 6, 9)] == [0, 0, 1, 0, 1, 0]
    assert not state(None, 3).due(9) and not state(None, 0).due(9)
    one, slow = state(tmp_path, 0), state(tmp_path, 0, took=2.0)
    for later, due, also in ((29.0, 0, 0), (30.5, 1, 0), (39.0, 1, 0), (41.0, 1, 1)):
        now[0] = 100 + later
        assert (one.due(9), slow.due(9)) == (due, also), later
    assert not one.due(3)
    one.add({"loss": 0.5}, 2.0)
    assert one.step == 4 and one.log == [{"step": 4, "loss": 0.5, "grad_norm": 2.0}]
    assert state(None, 3).write() == "nowhere, as the run has no cache"


def test_the_random_states_of_a_process_are_put_back():
    import random

    device = torch.device("cpu")
    kept = checkpoint._random_states(device)
    assert kept["cuda"] is None

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() != first
    checkpoint._set_random_states(kept, device)
    assert draw() == first


def test_arrays_hold_all_of_a_tensor():
    for dtype, as_array in ((torch.bfloat16, np.float32), (torch.float64, np.float64)):
        tensor = torch.tensor([[1.5, -2.0]], dtype=dtype, requires_grad=True)
        array = checkpoint._array(tensor)
        assert array.dtype == as_array and array.tolist() == [[1.5, -2.0]]
        other = torch.zeros(1, 2, dtype=dtype)
        checkpoint._fill(other, array)
        assert torch.equal(other, tensor.detach())
    local = types.SimpleNamespace(to_local=lambda: torch.ones(2), full_tensor=None)
    assert checkpoint._array(local).tolist() == [1, 1] and checkpoint._is_sharded(local)
    assert not checkpoint._is_sharded(torch.ones(1))


def test_states_of_a_folder_in_order(tmp_path):
    for name in ("state-00000010", "state-00000009", "state-1", ".state-00000011", "other"):
        (tmp_path / name).mkdir()
    assert checkpoint._states(tmp_path) == ["state-00000009", "state-00000010"]
    assert checkpoint._states(None) == [] == checkpoint._states(tmp_path / "none")
