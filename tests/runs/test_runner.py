"""Running notebooks: refusals before a kernel, records whole or not at all, resume."""

import errno
import json
import os
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT
from helpers.toy import CELL, notebook

from safealign_utils.runs import cli, folders, runner
from safealign_utils.study import records
from safealign_utils.study import settings as parameters
from safealign_utils.study.settings import Refusal

BODY = """import json, os
if out_dir:
    from safealign_utils.study import records
    records.write(out_dir, notebook="toy", run_id="", parameters={"beta": beta}, metrics={"beta": beta}, timings={"total": 1.0, "peak_memory_bytes": 1},
                  claims=[], tables=[], figures=[], provenance={})"""


def rows(word=""):
    """Pairs to train on and pairs held out, in the PKU columns, as the text of a file."""
    row = {"response_0": "b", "response_1": "c", "better_response_id": 1}
    return "".join(
        json.dumps(row | {"prompt": word + s, "split": s}) + "\n" for s in ("train", "test")
    )


@pytest.fixture
def toy(tmp_path):
    return notebook(tmp_path / "toy.ipynb", CELL, BODY)


def refusal(toy, capsys, *given, files=(), book=None):
    """The one message and exit status of a refused command; no kernel may have started."""
    words = ["run", str(book or toy), "--out", str(toy.parent / "out")]
    words += [w for g in given for w in ("-p", g)] + [w for f in files for w in ("-f", str(f))]
    status = cli.main(words)
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err
    assert not (toy.parent / "out").exists(), "nothing was started or written"
    return err


@pytest.mark.parametrize(
    "given, words",
    [
        ("bta=1", ["bta", "did you mean 'beta'"]),
        ("beta=big", ["beta='big'", "a number"]),
        ("beta=0", ["beta=0.0", "above 0"]),
        ("beta=-1", ["beta=-1.0", "above 0"]),
        ("beta=nan", ["beta=nan"]),
        ("beta=inf", ["beta=inf"]),
        ("seed=1.5", ["seed='1.5'", "whole number"]),
        ("seed=-1", ["seed=-1"]),
        ("steps=-5", ["steps=-5"]),
        ("profile=tiny", ["profile='tiny'", "small, full"]),
        ("dtype=int8", ["dtype='int8'", "float64"]),
        ("label=nicer", ["label='nicer'", "better"]),
        ("betas=[0.5,x]", ["betas=", "a list"]),
        ("betas=[0.5,-1]", ["betas=[0.5, -1.0]", "above 0"]),
        ("learning_rate=-1e-3", ["learning_rate=-0.001"]),
        ("out_dir=here", ["out_dir", "--out"]),
        ("data=missing.jsonl", ["data=missing.jsonl", "no such file"]),
        ("data=world", ["data='world'", "a file, a hub id"]),
        ("model=world", ["model='world'", "a folder or a hub id"]),
        ("device=tpu", ["auto, cpu, cuda"]),
    ],
)
def test_refused_parameters(toy, capsys, given, words):
    err = refusal(toy, capsys, given)
    assert all(w in err for w in words), err


def test_unknown_parameter_is_refused_where_papermill_only_warns(toy, tmp_path):
    import papermill

    papermill.execute_notebook(
        str(toy),
        str(tmp_path / "o.ipynb"),
        parameters={"bta": 1},
        kernel_name="python3",
        progress_bar=False,
    )
    with pytest.raises(Refusal, match="bta"):
        runner.prepare(toy, [("bta", "1")])


def test_parameters_of_a_file_are_typed(toy, tmp_path, capsys):
    file = tmp_path / "p.yaml"
    for text, words in [
        ("learning_rate: -1e-3", ["learning_rate=-0.001", "above 0"]),
        ("seed: '007'", ["seed='007'", "without quotes"]),
        ("beta: true", ["beta=True", "float"]),
        ("seeds: 1.5", ["seeds=1.5"]),
        ("betas: 0.5", ["betas=0.5", "list"]),
        ("btas: [1]", ["btas", "betas"]),
        ("- 1", ["holds no names"]),
        ("a: [", ["cannot be read"]),
    ]:
        file.write_text(text)
        err = refusal(toy, capsys, files=[file])
        assert all(w in err for w in words), (text, err)
    refusal(toy, capsys, files=[tmp_path / "missing.yaml"])
    file.write_text("learning_rate: 1e-3\nbeta: 2\nbetas: [1, 2]")
    settings = runner.prepare(toy, [("beta", "3")], [file])[1]
    assert (
        settings["learning_rate"] == 1e-3
        and settings["beta"] == 3.0
        and settings["betas"] == [1.0, 2.0]
    )


def test_texts_of_p_follow_the_annotation(toy):
    cell = parameters.read_cell(toy)
    values = parameters.collect(
        cell, [("learning_rate", "1e-3"), ("revision", "007"), ("betas", "0.5,1"), ("seed", "3")]
    )
    assert (values["learning_rate"], values["revision"], values["betas"], values["seed"]) == (
        1e-3,
        "007",
        [0.5, 1.0],
        3,
    )


@pytest.mark.parametrize(
    "tag, words", [("Parameters", "rename its tag 'Parameters'"), (None, "tag exactly one")]
)
def test_a_missing_or_misspelt_tag_is_refused(toy, tmp_path, capsys, tag, words):
    assert words in refusal(toy, capsys, book=notebook(tmp_path / "bad.ipynb", CELL, BODY, tag=tag))


@pytest.mark.parametrize(
    "line", ["twice = beta * 2", "rate: float = 2 * 0.5", "x: float", "import os", "n = 3"]
)
def test_derived_values_in_the_parameters_cell_are_refused(toy, tmp_path, capsys, line):
    book = notebook(tmp_path / "bad.ipynb", CELL + "\n" + line, BODY)
    assert "name: type = literal" in refusal(toy, capsys, book=book)


def test_unreadable_and_unknown_notebooks(toy, tmp_path, capsys):
    (tmp_path / "x.ipynb").write_text("{")
    assert "x.ipynb', line 1: not JSON" in refusal(toy, capsys, book=tmp_path / "x.ipynb")
    assert "01_dpo_basics" in refusal(toy, capsys, book="02_nothing")
    bare = notebook(tmp_path / "bare.ipynb", 'profile: str = "small"', BODY)
    assert "out_dir" in refusal(toy, capsys, book=bare)


def test_bad_data_and_model_are_refused_before_a_kernel(toy, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "response_0": "b"}\n')
    err = refusal(toy, capsys, "model=scratch", f"data={file}")
    assert "line 1" in err and "response_1" in err
    file.write_text(rows())
    assert "label='safer'" in refusal(toy, capsys, "model=scratch", f"data={file}", "label=safer")
    (tmp_path / "model").mkdir()
    assert ".safetensors" in refusal(toy, capsys, f"model={tmp_path / 'model'}", f"data={file}")
    assert "no such folder" in refusal(toy, capsys, f"model={tmp_path / 'none'}", f"data={file}")


def test_debug_shows_the_traceback(toy):
    with pytest.raises(Refusal):
        cli.main(["--debug", "run", str(toy), "-p", "bta=1"])


def test_command_line_refuses_a_word_without_equals():
    out = subprocess.run(
        [sys.executable, "-m", "safealign_utils.runs.cli", "run", "x", "-p", "beta"],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 2 and "name=value" in out.stderr


# ---------------------------------------------------------------- runs


def test_a_run_is_whole_and_is_not_repeated(toy, tmp_path, capsys):
    folder, record, ran = runner.run(toy, [("beta", "2")], out=tmp_path / "out")
    assert ran and record["status"] == "complete" and record["metrics"] == {"beta": 2.0}
    assert record["run_id"] == folder.name
    assert {p.name for p in folder.iterdir()} == {"record.json", "toy.ipynb"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == [folder.name]
    assert runner.run(toy, [("beta", "2")], out=tmp_path / "out")[2] is False
    assert cli.main(["run", str(toy), "-p", "beta=2", "--out", str(tmp_path / "out")]) == 0
    assert "already complete" in capsys.readouterr().out
    assert runner.run(toy, [("beta", "3")], out=tmp_path / "out")[0] != folder
    (folder / "record.json").write_text("{")
    assert runner.run(toy, [("beta", "2")], out=tmp_path / "out")[2] is True


def test_run_id_follows_the_question(toy, tmp_path):
    id = lambda *given, book=toy: runner.prepare(book, list(given))[2]
    assert id() == id(("beta", "0.5")) == id(("steps", "60")), "same question, same id"
    assert len({id(), id(("beta", "1")), id(("seed", "1")), id(("profile", "full"))}) == 4
    other = notebook(tmp_path / "other.ipynb", CELL, BODY + "\n# changed")
    assert id() != id(book=other)
    book = nbformat.read(toy, 4)
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    nbformat.write(book, tmp_path / "out.ipynb")
    assert id() == id(book=tmp_path / "out.ipynb"), "outputs are no part of the question"


def test_run_id_holds_what_the_profile_fills_in(toy, tmp_path, monkeypatch):
    values, ids = parameters.profile("small"), []
    monkeypatch.setattr(parameters, "NOTEBOOKS", tmp_path)
    (tmp_path / "profiles").mkdir()
    for changed in ({}, {"steps": 61}, {"new_tokens": 49}):
        (tmp_path / "profiles" / "small.yaml").write_text(json.dumps(values | changed))
        ids.append(runner.prepare(toy)[2])
    assert ids[0] != ids[1] and ids[2] == ids[0], "what this notebook does not have is not asked"


def test_run_id_holds_the_content_of_data(toy, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(rows())
    two.write_text(rows("other "))
    ids = [runner.prepare(toy, [("model", "scratch"), ("data", str(f))])[2] for f in (one, two)]
    two.write_text(one.read_text())
    assert ids[0] != ids[1] and records.content(str(one)) != records.content(str(two))


@pytest.mark.parametrize(
    "body, words",
    [
        ("raise ValueError('broken on purpose')", "broken on purpose"),
        ("import sys; sys.exit(0)", "without a complete record"),
        ("x = 1", "without a complete record"),
        ("import os; os._exit(1)", "kernel"),
    ],
)
def test_a_broken_run_leaves_no_folder(tmp_path, capsys, body, words):
    book = notebook(tmp_path / "toy.ipynb", CELL, body, "later = 1")
    assert cli.main(["run", str(book), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()], "no half-written folder"


def test_a_killed_run_leaves_no_complete_folder(tmp_path):
    """kill -9 in the middle: nothing that looks finished, and the same command then finishes."""
    flag = tmp_path / "started"
    body = f"import pathlib, time\npathlib.Path({str(flag)!r}).touch()\ntime.sleep(0 if pathlib.Path({str(tmp_path / 'go')!r}).exists() else 60)\n"
    book = notebook(tmp_path / "toy.ipynb", CELL, body + BODY)
    words = [
        sys.executable,
        "-m",
        "safealign_utils.runs.cli",
        "run",
        str(book),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(words)
    while not flag.exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not [p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")]
    (tmp_path / "go").touch()
    assert subprocess.run(words).returncode == 0


# ---------------------------------------------------------------- records


def arguments(**changes):
    whole = dict(
        notebook="n",
        run_id="",
        parameters={},
        metrics={"a": 1.0},
        timings={},
        claims=[],
        tables=[],
        figures=[],
        provenance={},
    )
    return {**whole, **changes}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True])
def test_a_record_holds_finite_numbers_only(tmp_path, value):
    with pytest.raises(ValueError, match="finite numbers"):
        records.write(tmp_path, **arguments(metrics={"a": value}))
    assert not list(tmp_path.iterdir())


def test_a_record_with_a_missing_table_is_not_complete(tmp_path):
    records.write(tmp_path, **arguments(tables=["t.csv"]))
    assert records.read(tmp_path) is None
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert records.read(tmp_path)["tables"] == ["t.csv"]


def test_profiles_fill_what_is_left_open(toy):
    small = runner.prepare(toy)[1]
    full = runner.prepare(toy, [("profile", "full"), ("steps", "7")])[1]
    assert (small["dtype"], small["seeds"]) == ("float64", 1)
    assert (full["dtype"], full["seeds"], full["pairs"], full["steps"]) == ("float32", 3, 6000, 7)


def test_plain_papermill_from_another_folder(tmp_path, monkeypatch):
    """The committed notebooks run from anywhere and write nothing; a bad value stops them at the validation cell."""
    import papermill

    monkeypatch.chdir(tmp_path)
    book = str(ROOT / "notebooks" / "05_dog_selection.ipynb")
    tiny = {"pairs": 160, "steps": 2, "selections": ["random"]}
    papermill.execute_notebook(book, "out.ipynb", parameters=tiny, progress_bar=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]
    with pytest.raises(papermill.PapermillExecutionError, match="beta=-1"):
        papermill.execute_notebook(book, "bad.ipynb", parameters={"beta": -1.0}, progress_bar=False)


@pytest.mark.parametrize(
    "given",
    [
        ("pairs=1", "steps=1", "batch_size=64", "betas=0.5"),
        (
            "beta=0.1",
            "betas=0.1,0.1",
            "pairs=30",
            "steps=2",
            "pair_shares=0.999,1",
        ),
        (
            "beta=1",
            "labels=soft",
            "seed=4",
            "pairs=30",
            "steps=2",
            "betas=2",
            "dtype=bfloat16",
            "leak_weight=0",
        ),
    ],
)
def test_unusual_but_legal_values_end_in_a_record(tmp_path, given):
    record = runner.run("01_dpo_basics", [tuple(g.split("=")) for g in given], out=tmp_path)[1]
    assert (
        record["status"] == "complete"
        and "dpo.kl_opt" in record["metrics"]
        and "dpo_soft.kl_opt" in record["metrics"]
    )


def test_the_notebooks_of_the_world_refuse_real_text(tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(30)
        )
    )
    assert cli.main(["run", "00_the_world", "-p", f"data={file}"]) == 2
    assert (
        "00_the_world has no parameter data; 07_a_real_model, 08_your_own_pairs have"
        in capsys.readouterr().err
    )


def test_data_without_held_out_pairs_is_refused(toy, tmp_path, capsys):
    file = tmp_path / "p.jsonl"
    file.write_text(
        json.dumps({"prompt": "x", "chosen": "a", "rejected": "b", "split": "train"}) + "\n"
    )
    assert "held-out" in refusal(toy, capsys, "model=scratch", f"data={file}")


def test_broken_files_are_refusals_too(toy, tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes(b"beta: \xe9\xff")
    assert "cannot be read" in refusal(toy, capsys, files=[tmp_path / "latin.yaml"])
    assert "no Python" in refusal(
        toy, capsys, book=notebook(tmp_path / "bad.ipynb", "profile: str = ", BODY)
    )


def test_run_id_holds_libraries_and_shipped_policies(toy, monkeypatch):
    from safealign_utils.engine import cache

    before = runner.prepare(toy)[2]
    monkeypatch.setattr(cache, "library_versions", lambda: {"torch": "0"})
    assert runner.prepare(toy)[2] != before


def test_run_id_holds_the_committed_tables_that_are_read(tmp_path, monkeypatch):
    """The ones that the code names; all of them where it does not say which; those of no other notebook."""
    monkeypatch.setattr(records, "COMMITTED", tmp_path / "tables")
    (tmp_path / "tables").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "tables" / name).write_text("1")
    calls = (
        "x = 1",
        'committed( "a.csv")',
        "committed('b.csv')",
        "committed(name)",
        'committed("none.csv")',
    )
    books = [notebook(tmp_path / f"{n}.ipynb", CELL, code) for n, code in enumerate(calls)]
    before = [runner.prepare(book)[2] for book in books]
    (tmp_path / "tables" / "a.csv").write_text("2")
    after = [runner.prepare(book)[2] for book in books]
    assert [a != b for a, b in zip(after, before)] == [False, True, False, True, False]


# ---------------------------------------------------------------- folders


def closed(tmp_path):
    """A folder that cannot be made, for root too: a file is in the way."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


def test_a_cache_that_cannot_be_written_is_refused_before_a_kernel(
    toy, capsys, monkeypatch, tmp_path
):
    place = closed(tmp_path)
    monkeypatch.setenv("SAFEALIGN_CACHE", str(place))
    err = refusal(toy, capsys)
    assert (
        f"SAFEALIGN_CACHE={str(place)!r}" in err
        and "set SAFEALIGN_CACHE to a folder of yours" in err
    )
    monkeypatch.delenv("SAFEALIGN_CACHE")
    monkeypatch.setenv("HOME", str(place))
    assert "SAFEALIGN_CACHE=''" in refusal(toy, capsys)


def test_results_that_cannot_be_written_are_refused_before_a_kernel(toy, capsys, tmp_path):
    place, grid = closed(tmp_path), tmp_path / "g.yaml"
    grid.write_text(f"notebook: {json.dumps(str(toy))}\nseeds: 2\n")
    for words in (["run", str(toy)], ["sweep", str(grid)], ["reproduce"]):
        assert cli.main([*words, "--out", str(place)]) == 2
        err = capsys.readouterr().err
        assert (
            "--out" in err
            and str(place) in err
            and "name another folder" in err
            and err.count("\n") == 1
        )


def test_a_look_at_a_folder_leaves_nothing(tmp_path):
    assert folders.trouble(tmp_path / "a" / "b") == "" and folders.trouble(closed(tmp_path))
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert folders.trouble(tmp_path / "nowhere" / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nowhere"}


@pytest.mark.parametrize("home", ["/proc/nohome", None])
def test_a_run_without_a_home(toy, tmp_path, home):
    """With cache and results named, a home that cannot be written, or none, is no matter; nobody warns."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", *folders.HOMES)
    }
    environment |= {"HOME": home} if home else {}
    words = [
        sys.executable,
        "-m",
        "safealign_utils.runs.cli",
        "run",
        str(toy),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and "complete" in done.stdout, done.stderr


FULL = "import errno\nraise OSError(errno.ENOSPC, 'No space left on device', 'table.csv')"


def test_a_disk_that_fills_up(tmp_path, capsys, monkeypatch):
    """In a cell, or when the finished folder is put in its place: one message with the fix, no half folder."""
    full = notebook(tmp_path / "full.ipynb", CELL, FULL)
    assert cli.main(["run", str(full), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "No space left" in err and "make room" in err

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "_complete", no_room)
    book = notebook(tmp_path / "toy.ipynb", CELL, BODY)
    assert cli.main(["run", str(book), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert (
        str(tmp_path / "out") in err
        and "No space left" in err
        and "make room" in err
        and "Traceback" not in err
    )
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_paths_with_anything_in_them(tmp_path, monkeypatch, capsys):
    """Blanks, a line break, braces, %, #, letters of any script, `~`; relative to the folder one stands in."""
    place = tmp_path / "a b\nc {d} {0} %s #1 é 名"
    place.mkdir()
    notebook(place / "toy {x}.ipynb", CELL, BODY)
    (place / "p #1.yaml").write_text("beta: 2\n")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    assert cli.main(["run", "toy {x}.ipynb", "-f", "~/p #1.yaml", "--out=~/o {u} t"]) == 0
    (folder,) = (place / "o {u} t").iterdir()
    assert records.read(folder)["metrics"] == {"beta": 2.0} and (folder / "toy {x}.ipynb").is_file()
    assert (
        cli.main(["run", "toy {x}.ipynb", "--out", "o\udcff"]) == 2
        and "no UTF-8" in capsys.readouterr().err
    )
