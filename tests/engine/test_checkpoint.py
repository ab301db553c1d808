"""States of an interrupted training: plain numbers with a digest, resumed bitwise or not at all."""

import os
import pickle
import resource
import shutil
import stat
import tempfile
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
