"""The cache's limit: the least recently used go first, nothing of others, also where two processes write at once."""

import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers import ROOT

from safealign_utils.engine import cache, room
from safealign_utils.runs import cli

KB = 1000


@pytest.fixture
def small(fresh_cache, monkeypatch):
    """A cache of 100 kB."""
    monkeypatch.setenv("SAFEALIGN_CACHE_GB", "1e-4")
    monkeypatch.setattr(room, "_free", {})
    return fresh_cache


def put(number, size=20 * KB):
    return cache.store("policy", f"{number:016x}", {"x": np.full(size // 8, float(number))})


def there(root):
    return {int(path.stem, 16) for path in root.glob(f"policy/{16 * '[0-9a-f]'}.safetensors")}


def bytes_of(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_the_least_recently_used_go_first(small):
    for number in range(4):
        os.utime(put(number), (1000 + number,) * 2)
    assert cache.load("policy", f"{0:016x}") is not None, "used now"
    put(4), put(5)
    assert {0, 4, 5} <= there(small) and 1 not in there(small) and bytes_of(small) <= 100 * KB


def test_an_entry_above_the_limit_is_not_stored(small, capsys):
    put(1)
    assert put(2, size=200 * KB) is None and there(small) == {1}
    assert "SAFEALIGN_CACHE_GB" in capsys.readouterr().err


def test_what_is_trained_or_of_others_stays(small):
    """The state of a training counts; a file without the name of an entry is no part of the cache."""
    keep = [
        small / "partial" / "1234567890abcdef" / "state.safetensors",
        small / "models--of-a-hub" / "model.safetensors",
        small / "policy" / "model.safetensors",
    ]
    for path in keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 30 * KB)
        os.utime(path, (1, 1))
    for number in range(8):
        put(number)
    assert all(path.exists() for path in keep)
    assert sum(e.size for e in room.entries(small)) <= 100 * KB and 7 in there(small)


def test_every_kind_that_the_package_stores_counts(small):
    """Those named where they are stored, and those that have a folder for each key."""
    source = "".join(path.read_text() for path in (ROOT / "safealign_utils").rglob("*.py"))
    plain = set(re.findall(r'cache\.store\("(\w+)"', source))
    keyed = set(re.findall(r'f"(\w+)/\{(?:distributed\.agree\()?cache\.key\(', source))
    assert {"policy", "scores"} <= plain and {"trie", "reference", "states"} <= keyed
    kinds = [*plain, *(f"{kind}/{'a' * 16}" for kind in keyed)]
    for kind in kinds:
        cache.store(kind, "b" * 16, {"x": np.zeros(100)})
    assert len(room.entries(small)) == len(kinds)


@pytest.mark.parametrize("given", ["0", "-1", "many", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(given, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SAFEALIGN_CACHE_GB", given)
    with pytest.raises(ValueError, match=f"SAFEALIGN_CACHE_GB='{given}': a number of GB above 0"):
        room.limit()
    assert cli.main(["run", "00_start_here", "--out", str(tmp_path)]) == 2
    assert "SAFEALIGN_CACHE_GB" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_two_processes_that_write_at_once_keep_it(small):
    """And every entry that is read is whole."""
    code = (
        "import sys, numpy as np\n"
        "from safealign_utils.engine import cache\n"
        "first = int(sys.argv[1])\n"
        "for n in range(first, first + 150):\n"
        "    cache.store('policy', f'{n:016x}', {'x': np.full(500, float(n))})\n"
        "    found = cache.load('policy', f'{n - 1:016x}')\n"
        "    assert found is None or (found[0]['x'] == n - 1).all()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, first], env=environment)
        for first in ("0", "1000")
    ]
    most, done = [], threading.Event()

    def watch():
        while not done.is_set():
            most.append(sum(entry.size for entry in room.entries(small)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    statuses = [writer.wait() for writer in writers]
    done.set()
    watcher.join()
    assert statuses == [0, 0] and 40 * KB < max(most) <= 105 * KB, max(most)
    assert {149, 1149} & there(small), "of the writer that ended last"


def test_the_command_lists_checks_and_clears(small, capsys):
    put(1), put(2)
    assert cli.main(["cache"]) == 0
    assert "policy" in (said := capsys.readouterr().out) and "2 entries" in said
    damaged = small / "policy" / f"{1:016x}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert cli.main(["cache", "--check"]) == 1 and "damaged" in capsys.readouterr().out
    assert there(small) == {2} and cli.main(["cache", "--check"]) == 0
    assert cli.main(["cache", "--clear"]) == 0 and there(small) == set()
