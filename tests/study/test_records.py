"""Records as they are read: whatever is odd in one, it counts as absent and stops nobody."""

import json
import os
import platform
import subprocess
import time

import pytest
import torch

from safealign_utils.engine import cache
from safealign_utils.real import hub
from safealign_utils.study import records
from safealign_utils.study.settings import Refusal

SOUND = dict(
    schema=1,
    status="complete",
    notebook="toy",
    run_id="id",
    parameters=dict(seed=0, beta=0.5, betas=[1.0], data=""),
    metrics={"dpo.unsafe": 0.25, "data.rows": 12},
    timings=dict(total=61.0, peak_memory_bytes=2**30),
    claims=[dict(id="a", verdict="holds", value=0.1, low=None, high=None, n=3)],
    tables=["t.csv"],
    figures=[],
    provenance=dict(code="c", git="g", packages={"torch": "2"}),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.csv").write_text("a\n1\n")
    return tmp_path


def test_a_sound_record_is_read_with_whatever_stands_beside(folder):
    (folder / "record.json").write_text(json.dumps(SOUND | {"later": [1]}))
    assert records.read(folder) == SOUND | {"later": [1]}


@pytest.mark.parametrize("name", [*SOUND])
@pytest.mark.parametrize(
    "value",
    [None, True, -1, 0.5, "x", "", [], [None], [[1]], {}, {"a": {}}, {"a": [[]]}, [{"id": 1}]],
)
def test_an_odd_value_is_absent_or_of_the_kind_that_is_written(folder, name, value):
    (folder / "record.json").write_text(json.dumps(SOUND | {name: value}))
    found = records.read(folder)
    if found is not None:
        assert type(found[name]) is type(SOUND[name]) and name not in ("schema", "status")


@pytest.mark.parametrize(
    "changes",
    [
        dict(metrics={"a": float("nan")}),
        dict(metrics={"a": float("inf")}),
        dict(metrics={"a": "1"}),
        dict(timings={"total": True}),
        dict(claims=[dict(SOUND["claims"][0], verdict="proven")]),
        dict(claims=[dict(SOUND["claims"][0], n=1.5)]),
        dict(claims=[{k: v for k, v in SOUND["claims"][0].items() if k != "low"}]),
        dict(tables=["t.csv", "u.csv"]),
        dict(tables=["t.csv\0"]),
        dict(provenance=dict(git=["g"])),
    ],
)
def test_an_odd_part_makes_the_record_absent(folder, changes):
    (folder / "record.json").write_text(json.dumps(SOUND | changes))
    assert records.read(folder) is None


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 10**5, '{"a":' * 10**5, "9" * 10**5])
def test_a_file_that_is_no_record_is_absent(folder, text):
    (folder / "record.json").write_text(text)
    assert records.read(folder) is None


@pytest.mark.parametrize("what", ["pipe", "folder", "loop", "device", "sparse"])
def test_what_lies_in_the_place_of_a_record_is_absent(folder, what):
    file = folder / "record.json"
    {
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "loop": lambda: file.symlink_to(file),
        "device": lambda: file.symlink_to("/dev/zero"),
        "sparse": lambda: (file.touch(), os.truncate(file, 2**40)),
    }[what]()
    assert records.read(folder) is None


# ---------------------------------------------------------------- what is written
def parts(**changes):
    names = [name for name in SOUND if name not in ("schema", "status")]
    return {name: SOUND[name] for name in names} | changes


def test_what_is_written_is_what_is_read(folder):
    records.write(folder, **parts())
    assert records.read(folder) == SOUND
    text = (folder / "record.json").read_text()
    assert text == json.dumps(SOUND, indent=1) + "\n" and os.listdir(folder).count("t.csv") == 1


@pytest.mark.parametrize("kind", ["metrics", "timings"])
@pytest.mark.parametrize("value", [True, "1", None, [1.0], float("nan"), float("-inf")])
def test_only_finite_numbers_are_written(folder, kind, value):
    with pytest.raises(ValueError, match="a record has finite numbers only"):
        records.write(folder, **parts(**{kind: {"a": value}}))
    with pytest.raises(ValueError):
        records.write(folder, **parts(parameters={"a": float("nan")}))
    assert not (folder / "record.json").exists()


def test_numbers_are_read_as_they_are_written_and_texts_are_none(folder):
    for odd in (dict(metrics={"a": "0.5"}), dict(notebook=3), dict(tables=("t.csv", 1))):
        (folder / "record.json").write_text(json.dumps(SOUND | odd))
        assert records.read(folder) is None, odd


def test_a_file_of_a_run_lies_in_its_folder_and_is_a_file(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "u.csv"
    other.write_text("a")
    (folder / "link.csv").symlink_to(other)
    (folder / "inner").mkdir()
    os.mkfifo(folder / "pipe.csv")
    assert records.own_file(folder, "t.csv") == folder / "t.csv"
    away = os.path.relpath(other, folder)
    for name in ("link.csv", "inner", "pipe.csv", "none.csv", away, str(other), "inner/../t.csv"):
        assert records.own_file(folder, name) is None, name
    assert records.own_file(folder, str(folder / "t.csv")) is None, "a path from the root"


# ---------------------------------------------------------------- contents and hashes
def test_the_hash_of_a_package_is_that_of_what_it_would_do(tmp_path):
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    for name in ("x.py", "claims.yaml", "inner/w.safetensors", "inner/answers.jsonl", "notes.md"):
        (tmp_path / "a" / name).write_text(name)
    seen = [records.package_hash(tmp_path / "a")]
    (tmp_path / "a" / "notes.md").write_text("of no effect")
    assert records.package_hash(tmp_path / "a") == seen[0]
    for name in ("x.py", "claims.yaml", "inner/w.safetensors", "inner/answers.jsonl"):
        (tmp_path / "a" / name).write_text("another " + name)
        seen.append(records.package_hash(tmp_path / "a"))
    (inner / "w.safetensors").rename(inner / "v.safetensors")
    seen.append(records.package_hash(tmp_path / "a"))
    assert len(set(seen)) == 6
    (tmp_path / "a").rename(tmp_path / "b")
    assert records.package_hash(tmp_path / "b") == seen[-1], "wherever it lies"


def test_the_tables_that_a_notebook_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    for name in ("a.csv", "b.csv", "c.txt"):
        (tmp_path / name).write_text(name)
    read = records._committed
    assert read("records.committed('a.csv')") == {"a.csv": b"a.csv"}
    assert read('committed( "c.txt" ); committed("gone.csv")') == {"c.txt": b"c.txt"}
    assert read("committed(name)") == {"a.csv": b"a.csv", "b.csv": b"b.csv"}
    assert read("committed_not('a.csv')") == read("uncommitted('a.csv')") == {}
    assert list(records.committed("a.csv").columns) == ["a.csv"]
    with pytest.raises(
        Refusal, match="table='z.csv': .* holds none; run the notebook from a clone"
    ):
        records.committed("z.csv")


VERDICTS = """claim,setting,verdict,confirmed,value,low,high,n,rule
a.one,,holds,undecided,-0.1,-0.2,-0.01,8,below 0
a.two,limit=0,holds,,0.1,0.05,0.2,8,within 0.5
a.three,,not_judged,not_judged,,,,0,below 0
a.other_bar,,holds,holds,0.1,0.0,0.2,8,below 1
"""
FIRST = """id,setting,verdict,value,low,high,n,rule
a.one,,holds,-0.9,-1.0,-0.8,3.0,below 0
a.three,,holds,-0.3,-0.4,-0.2,3.0,below 0
"""
BARS = {"a.one": "below 0", "a.two": "within 0.5", "a.three": "below 0", "a.other_bar": "below 2"}


def test_committed_verdicts(tmp_path, monkeypatch):
    """Later seeds first, the corrected verdict, none by another rule; none outside of a clone."""
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    assert records.committed_verdicts(BARS) == {}
    (tmp_path / "verdicts_full.csv").write_text(FIRST)
    (tmp_path / "verdicts_confirmed.csv").write_text(VERDICTS)
    found = records.committed_verdicts(BARS)
    assert {id: (one["verdict"], one["n"], one["seeds"][:12]) for id, one in found.items()} == {
        "a.one": ("undecided", 8, "seeds 5 to 1"),
        "a.two[limit=0]": ("holds", 8, "seeds 5 to 1"),
        "a.three": ("holds", 3, "seeds 0 to 2"),
    }
    assert found["a.three"]["low"] == -0.4
    read = records._committed
    assert set(read("study.claim('a.one', x)")) == set(records.JUDGED_ON)


def test_contents_of_files_folders_and_names(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "commit", lambda *asked: str(asked))
    seen = []
    for name, text in (
        ("a/x.json", "1"),
        ("b/x.json", "2"),
        ("c/y.json", "1"),
        ("d/e/x.json", "1"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        seen.append(records.content(str(tmp_path / name.split("/")[0])))
    assert len(set(seen)) == 4, "text, name and place"
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "x.json").write_text("1")
    assert records.content(str(tmp_path / "same")) == seen[0], "a model may lie anywhere"
    a, same = (f"{tmp_path}/{name}" for name in ("a", "same"))
    assert records.content(a, "dataset") != records.content(same, "dataset"), "the data set's name"
    assert records.content(f"z={a}", "dataset") == records.content(f"z={same}", "dataset")
    files = [records.content(f"{tmp_path}/{name}/x.json") for name in ("a", "b", "same")]
    assert files[0] == files[2] != files[1]
    hubs = [records.content("org/name", "model", revision) for revision in ("", "main")]
    assert len({*hubs, records.content("org/other", "model", "")}) == 3


def test_files_of_a_folder_whose_links_run_in_a_circle(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("a.txt", "b/c/d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    found = records._files(str(tmp_path))
    assert [name for name, _ in found] == ["a.txt", "b/c/d.txt"]
    assert [open(path).read() for _, path in found] == ["a.txt", "b/c/d.txt"]


def test_a_file_that_may_have_changed_is_read_again(tmp_path, monkeypatch):
    """Its hash is kept only once it has been left alone for two seconds."""
    file, reads, now = tmp_path / "w", [], time.time_ns()
    file.write_bytes(bytes(range(256)) * 300)
    monkeypatch.setattr(records, "open", lambda *a: reads.append(a) or open(*a), raising=False)
    first = records._content_hash(str(file))
    for later, count in ((0, 2), (int(1.9e9), 3), (int(3e9), 4), (int(3e9), 4)):
        monkeypatch.setattr(records.time, "time_ns", lambda later=later: now + later)
        assert records._content_hash(str(file)) == first and len(reads) == count, later


# ---------------------------------------------------------------- where it was made
def test_where_a_run_was_made():
    made = records.provenance(data_hash="d", reference_hash="r", more=[1])
    assert made["code"] == cache.code_hash() and made["git"] == records.git_commit()
    assert made["python"] == platform.python_version() and set(made["packages"]) == {
        *records.PACKAGES
    }
    assert made["cpu"].startswith(records.processor()) and made["device"] == "cpu"
    assert (made["threads"], made["data_hash"]) == (torch.get_num_threads(), "d")
    assert (made["reference_hash"], made["more"]) == ("r", [1])
    assert made["cpu"].endswith(torch.backends.cpu.get_cpu_capability())


def test_the_commit_is_that_of_the_packages_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PACKAGE", tmp_path / "safealign_utils")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.git_commit() == "", "outside of one"
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    short = subprocess.check_output(asked, cwd=tmp_path, text=True).strip()
    assert records.git_commit() == short
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.git_commit() == "", "without git"


def test_the_name_of_the_processor(monkeypatch):
    def said(text):
        monkeypatch.setattr(records.Path, "read_text", lambda self: text)
        return records.processor()

    assert said("flags: x\nmodel name\t: Some  CPU 9 \nmodel name: two\n") == "Some  CPU 9"
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv")
    assert said("nothing") == "riscv"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert said("nothing") == "arm"
