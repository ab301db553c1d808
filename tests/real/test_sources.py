"""What `data` names, and its content hash: paths with any sign in them, and every change of a file seen."""

import json
import os
import shutil

import pandas as pd
import pytest

from safealign_utils.engine import boundary
from safealign_utils.real import read_pairs
from safealign_utils.real.sources import absolute, sources
from safealign_utils.study import records

ROW = {"prompt": "How?", "response_0": "So.", "response_1": "No.", "better_response_id": 0}
OLD = (315532800, 315532800)


def made(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ROW | changes) + "\n")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "value, wanted",
    [
        ("v=2/p.jsonl", [("", "v=2/p.jsonl")]),
        ("a,b/p.jsonl", [("", "a,b/p.jsonl")]),
        ("a=1,b=2/p.jsonl", [("", "a=1,b=2/p.jsonl")]),
        ("pku=v=2/p.jsonl", [("pku", "v=2/p.jsonl")]),
        ("pku=v=2/p.jsonl, x=a,b/p.jsonl", [("pku", "v=2/p.jsonl"), ("x", "a,b/p.jsonl")]),
        (
            "x=a=1,b=2/p.jsonl,y=owner/name@main",
            [("x", "a=1,b=2/p.jsonl"), ("y", "owner/name@main")],
        ),
        ("owner/name", [("", "owner/name")]),
        ("world", [("", "world")]),
    ],
)
def test_a_path_that_exists_is_that_path(tmp_path, value, wanted):
    for folder in ("v=2", "a,b", "a=1,b=2"):
        made(tmp_path / folder / "p.jsonl")
    assert sources(value) == wanted
    assert [name for name, _ in sources(absolute(value))] == [name for name, _ in wanted]


def test_what_is_missing_or_ambiguous_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="eval_prompts=x=gone.jsonl: no such file: 'gone.jsonl'; give a path"
    ):
        sources("x=gone.jsonl", "eval_prompts")
    with pytest.raises(ValueError, match="data=v=3/p.jsonl: no such file: '3/p.jsonl'"):
        read_pairs.load_pairs("v=3/p.jsonl")
    for name in ("p", "q", "p,b=q"):
        made(tmp_path / name)
    with pytest.raises(ValueError, match="can be read in 2 ways; give the paths in full"):
        sources("a=p,b=q")
    assert sources(f"a={tmp_path}/p,b={tmp_path}/q") == [
        ("a", f"{tmp_path}/p"),
        ("b", f"{tmp_path}/q"),
    ]


@pytest.mark.parametrize("name", ["lr=1e-5", "a,b", "run[1]", "st*r", "what?"])
def test_the_content_of_any_path_is_hashed(tmp_path, name):
    for kind, file in (
        ("model", made(tmp_path / name / "w.safetensors")),
        ("dataset", made(tmp_path / f"{name}.jsonl")),
    ):
        what = name if kind == "model" else file.name
        before = records.content(what, kind)
        assert before == records.content(what, kind)
        made(file, prompt="Who?")
        assert before != records.content(what, kind), kind
    assert records.content(f"x={name}.jsonl", "dataset") != records.content(
        f"y={name}.jsonl", "dataset"
    )


def test_no_time_stamp_hides_a_change(tmp_path):
    file = made(tmp_path / "p.jsonl")
    os.utime(file, OLD)
    before = records.content("p.jsonl", "dataset")
    made(file, response_0="To.")
    os.utime(file, OLD)
    assert records.content("p.jsonl", "dataset") != before
    other = made(tmp_path / "other.jsonl", response_0="Oh.")
    os.utime(other, OLD)
    seen = records.content("p.jsonl", "dataset")
    shutil.copy2(other, file)
    assert records.content("p.jsonl", "dataset") != seen


def test_links_and_places_inside_a_folder_count(tmp_path):
    made(tmp_path / "one" / "p.jsonl"), made(tmp_path / "two" / "p.jsonl", prompt="Who?")
    link = tmp_path / "set"
    hashes = []
    for target in ("one", "two"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        hashes.append(records.content("set", "model"))
    made(tmp_path / "two" / "sub" / "q.jsonl")
    hashes.append(records.content("set", "model"))
    (tmp_path / "two" / "sub" / "q.jsonl").rename(tmp_path / "two" / "q.jsonl")
    hashes.append(records.content("set", "model"))
    (tmp_path / "two" / "q.jsonl").rename(tmp_path / "two" / "r.jsonl")
    hashes.append(records.content("set", "model"))
    (tmp_path / "two" / "circle").symlink_to(tmp_path / "two")
    hashes.append(records.content("set", "model"))
    assert len(set(hashes[:-1])) == 5 and hashes[-1] == records.content("set", "model")


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "folder"])
@pytest.mark.parametrize("name", ["p[1]", "st*r", "wh?t", "a=b,c"])
def test_a_path_is_no_pattern(tmp_path, kind, name):
    def write(name, text):
        frame = pd.DataFrame([ROW | {"response_0": text}])
        if kind == "folder":
            (tmp_path / name).mkdir()
            frame.to_csv(tmp_path / name / "rows[1].csv", index=False)
            return name
        save = {
            "csv": lambda f: frame.to_csv(f, index=False),
            "parquet": frame.to_parquet,
            "json": lambda f: frame.to_json(f, orient="records"),
        }
        save[kind](f"{name}.{kind}")
        return f"{name}.{kind}"

    write("p1", "other"), write("stir", "other"), write("what", "other")
    assert read_pairs.load_pairs(write(name, "right")).response_0.tolist() == ["right"]


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_rows_are_those_of_now_and_nothing_is_left(tmp_path, kind, monkeypatch):
    """An old time stamp, a home that nobody can write to, and no trace in the folder for temporary files."""
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/proc/nowhere")
    file = tmp_path / "set" / "p.csv"
    file.parent.mkdir()
    for text in ("old", "new"):
        pd.DataFrame([ROW | {"response_0": text}]).to_csv(file, index=False)
        os.utime(file, OLD), os.utime(file.parent, OLD)
        assert read_pairs.load_pairs(
            "set" if kind == "folder" else "set/p.csv"
        ).response_0.tolist() == [text]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_file_that_a_folder_would_leave_out_is_named(tmp_path):
    made(tmp_path / "set" / "train.jsonl"), made(tmp_path / "set" / "holdout.jsonl")
    with pytest.raises(
        ValueError, match="data=set: 'holdout.jsonl' would not be read.*train, validation or test"
    ):
        read_pairs.load_pairs("set")
    (tmp_path / "set" / "holdout.jsonl").rename(tmp_path / "set" / "test_prefs.jsonl")
    assert sorted(read_pairs.load_pairs("set")["split"]) == ["test", "train"]


def test_a_folder_of_everything_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """data=/ or data=~ would be read for hours."""
    monkeypatch.setattr(boundary, "MOST_FILES", 20)
    for number in range(30):
        (tmp_path / "all" / str(number)).mkdir(parents=True)
    with pytest.raises(ValueError, match="data=all: is a folder of more than 20 files and folders"):
        read_pairs.load_pairs("all")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(tmp_path / "all")
    with pytest.raises(ValueError, match="data=linked: is a folder of more than 20 files"):
        read_pairs.load_pairs("linked")
    with pytest.raises(ValueError, match="data='all': is a folder of more than 20 files"):
        records.content("all", "dataset")


def test_a_mistyped_file_is_no_hub_id(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="data=mine/pairs.xlsx: no such file; give a path"):
        read_pairs.load_pairs("mine/pairs.xlsx")
