"""Damaged entries of the cache: each counts as absent and is removed, and no number comes out of it."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers import tiny_models as toy
from safetensors.numpy import load_file, save_file

from safealign_utils import evaluate, logprobs, sampling, train
from safealign_utils.engine import cache, sealed
from safealign_utils.methods import dog
from safealign_utils.real.probe import States
from safealign_utils.world.world import World

ARRAYS = dict(a=np.arange(3.0), b=np.zeros((2, 0), np.float32), c=np.array(7, np.int64))


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


@pytest.fixture
def entry(fresh_cache, monkeypatch):
    monkeypatch.setattr(cache, "say", lambda words: None)
    return cache.store("policy", "a" * 16, ARRAYS, log=["loss"], seconds=1.5)


def load():
    return cache.load("policy", "a" * 16)


def test_what_was_stored_is_read(entry):
    arrays, info = load()
    assert equal(arrays, ARRAYS) and info == {"log": ["loss"], "seconds": 1.5}


def test_every_flipped_bit_and_every_cut(entry):
    """Of every byte of the file, one bit; and the file cut before it."""
    data = entry.read_bytes()
    for place in range(len(data)):
        for bad in (
            data[:place],
            data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :],
        ):
            entry.write_bytes(bad)
            assert load() is None and not entry.exists(), place
    entry.write_bytes(data)
    assert equal(load()[0], ARRAYS)


def as_before(file):
    """An entry as it was written before there were digests."""
    save_file(load_file(file), file, {"info": json.dumps({"log": ["loss"], "seconds": 1.5})})


DAMAGES = {
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "without a digest": as_before,
    "of another key": lambda file: shutil.copy(cache.store("policy", "b" * 16, ARRAYS), file),
    "of another kind": lambda file: shutil.copy(cache.store("scores", "a" * 16, ARRAYS), file),
    "deeply nested": lambda file: file.write_bytes(
        (n := 10**6).to_bytes(8, "little") + b'{"a":' * (n // 5)
    ),
    "a header of gigabytes": lambda file: file.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_damage(damage, entry):
    DAMAGES[damage](entry)
    assert load() is None and not entry.exists()


@pytest.mark.parametrize("kind", ["gone", "loop", "folder", "pipe"])
def test_what_is_no_file_is_absent(kind, entry):
    entry.unlink()
    if kind == "loop":
        entry.symlink_to(entry)
    if kind == "folder":
        entry.mkdir()
    if kind == "pipe":
        os.mkfifo(entry)
    assert load() is None
    assert (cache.store("policy", "a" * 16, ARRAYS) is None) == (kind == "folder")
    assert kind == "folder" or equal(load()[0], ARRAYS)


def test_no_room_in_memory_removes_nothing(entry, monkeypatch):
    def no_room(*words, **options):
        raise MemoryError

    monkeypatch.setattr(sealed, "safe_open", no_room)
    with pytest.raises(MemoryError):
        load()
    assert entry.exists()


# ---------------------------------------------------------------- every kind of entry


def trained():
    run = train.align(
        toy.policy_of("llama"),
        toy.made_tokens(),
        beta=0.5,
        steps=3,
        batch_size=4,
        learning_rate=1e-3,
        seed=0,
    )
    return torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]).numpy()


def of_the_world():
    from safealign_utils.references import reference_policy

    world = World()
    return evaluate.exact(reference_policy(world, seed=0)[0], world.select("heldout")[:2]).logp


def references():
    return np.concatenate(
        logprobs.reference_logprobs(toy.policy_of("llama"), toy.made_tokens()).chosen
    )


def directions():
    return dog.directions(toy.policy_of("llama"), toy.made_tokens()).numpy()


def states():
    found = States(toy.policy_of("llama"))
    return found([([3, 4, 5], [6, 7, 2]), ([3, 4], [8, 2])], keep=True)


def answers():
    return np.array(
        sampling.generate(toy.policy_of("llama"), ["w1 w2", "w3"], max_tokens=4, seed=0)
    )


KINDS = dict(policy=trained, trie=of_the_world, reference=references, directions=directions)
KINDS |= dict(states=states, answers=answers)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_entry_and_each_way_of_damage(kind, fresh_cache, monkeypatch):
    """Damaged, it is computed again to the same bits and stored again."""
    monkeypatch.setattr(cache, "say", lambda words: None)
    expected = KINDS[kind]()
    found = sorted(fresh_cache.glob(f"{kind}/**/*.safetensors"))
    assert found
    data = found[0].read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    for bad in (None, b"", data[:middle], flipped):
        found[0].unlink() if bad is None else found[0].write_bytes(bad)
        again = KINDS[kind]()
        assert np.array_equal(again, expected) and again.dtype == expected.dtype
        name = found[0].relative_to(fresh_cache).with_suffix("").as_posix()
        assert equal(sealed.read(found[0], name)[0], load_file(found[0]))
