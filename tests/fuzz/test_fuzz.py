"""A fixed short run of the fuzz harness over all readers; the long one: python tests/fuzz/harness.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

from fuzz import harness, mutations, readers
from safealign_utils.engine import boundary


def test_no_input_ends_in_anything_but_a_taking_or_a_refusal():
    """In a process of its own: the harness forks, and holds its forks to bounds."""
    words = ["--share", "0.02", "--seed", "19"]
    program = Path(harness.__file__)
    done = subprocess.run([sys.executable, program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    counts = {row[0].strip("| "): row[1:] for row in rows if len(row) == 2 + len(harness.VERDICTS)}
    assert set(readers.READERS) < set(counts)
    assert all(int(counts[reader][0]) >= 8 for reader in readers.READERS)
    taken, refused = (int(text.replace(",", "")) for text in counts["all"][1:3])
    assert taken > 50 and refused > 200, "inputs of both kinds"


def test_the_harness_sees_what_must_not_be(tmp_path, monkeypatch):
    """Every verdict, from readers that earn it."""
    monkeypatch.setattr(harness, "SECONDS", 1.0)
    monkeypatch.setattr(harness, "WALL", 8.0)

    def of(call):
        return 1, lambda rng, folder: lambda: call(folder)

    def spin(folder):
        while True:
            pass

    def refuse(folder):
        raise boundary.Refusal("beta='x': must be a number; write one")

    def odd(folder):
        raise boundary.Refusal("no parameter is named here")

    made = {
        "taken": of(lambda folder: None),
        "refused": of(refuse),
        "message": of(odd),
        "uncaught": of(lambda folder: [][1]),
        "hang": of(spin),
        "death": of(lambda folder: os.kill(os.getpid(), 5)),
        "half": of(lambda folder: (folder / ".t.csv.partial").write_text("a")),
    }
    monkeypatch.setattr(readers, "READERS", made)
    monkeypatch.setattr(readers, "prepare", lambda folder: None)
    started = time.monotonic()
    found, bad = harness.fuzz([f"{name}/0" for name in made] * 2, seed=0, workers=2)
    assert {name: dict(counts) for name, counts in found.items()} == {n: {n: 2} for n in made}
    assert len(bad) == 2 * len(harness.BAD) and time.monotonic() - started < 60
    assert "IndexError" in next(words for name, verdict, words in bad if verdict == "uncaught")


def test_what_no_verdict_is_made_of_ends_no_other_process(monkeypatch):
    """An input that ends its process, or that cannot be made, is a death; the harness goes on."""

    def unmade(rng, folder):
        raise RecursionError

    made = {"ends": (1, lambda rng, folder: lambda: sys.exit(3)), "unmade": (1, unmade)}
    made["taken"] = (1, lambda rng, folder: lambda: None)
    monkeypatch.setattr(readers, "READERS", made)
    monkeypatch.setattr(readers, "prepare", lambda folder: None)
    found, bad = harness.fuzz(["ends/0", "taken/0", "unmade/0", "taken/1"], seed=0, workers=1)
    assert dict(found["taken"]) == {"taken": 2} and len(bad) == 2
    assert found["ends"] == found["unmade"] == {"death": 1}


def test_an_input_is_made_again_from_its_name(tmp_path):
    import random

    def made(seed):
        rng = random.Random(f"{seed}/pairs/3")
        return mutations.yaml(rng, "a: 1\nb: 2\n"), mutations.damaged(rng, b"abc" * 50)

    assert made(0) == made(0) and len({made(seed) for seed in range(20)}) > 15
