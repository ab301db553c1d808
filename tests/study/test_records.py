"""Records as they are read: whatever is odd in one, it counts as absent and stops nobody."""

import json
import os

import pytest

from safealign_utils.study import records

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
