"""Sweeps: a grid is a pure function, a failure stops nothing, a kill loses nothing."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import kill_sweep
import pandas as pd
import pytest
import yaml
from helpers import ROOT
from helpers.made_models import model_folder, pairs_file
from helpers.toy import CELL, notebook

from safealign_utils.runs import cli, pool, sweep
from safealign_utils.study.settings import Refusal

COMMAND = [sys.executable, "-m", "safealign_utils.runs.cli"]


def book(path, *body):
    return notebook(path, CELL, *body, kill_sweep.BODY.replace("PAUSE", "0"))


def grid_file(path, **grid):
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


# ---------------------------------------------------------------- grids


def test_a_grid_is_a_list_of_runs(tmp_path):
    file = grid_file(
        tmp_path / "g.yaml",
        notebook="01_dpo_basics",
        fixed={"steps": 3},
        cross={"beta": [0.5, 1], "dtype": ["float32"]},
        zip={"pairs": [10, 20], "batch_size": [2, 4]},
        seeds=[3, 5],
    )
    grid = sweep.read(file)
    runs = sweep.runs(grid)
    assert (
        len(sweep.settings(grid)) == 4 and len(runs) == 8 and runs == sweep.runs(sweep.read(file))
    )
    assert runs[0].given == {
        "steps": 3,
        "pairs": 10,
        "batch_size": 2,
        "beta": 0.5,
        "dtype": "float32",
        "seed": 3,
        "seeds": 1,
    }
    assert [(r.given["pairs"], r.given["beta"], r.given["seed"]) for r in runs] == [
        (10, 0.5, 3),
        (10, 0.5, 5),
        (10, 1, 3),
        (10, 1, 5),
        (20, 0.5, 3),
        (20, 0.5, 5),
        (20, 1, 3),
        (20, 1, 5),
    ]
    assert (
        "steps" not in runs[0].varied
        and str(runs[0]) == "01_dpo_basics pairs=10 batch_size=2 beta=0.5 dtype=float32 seed=3"
    )
    assert runs[0].command("out") == (
        "safealign run 01_dpo_basics -p steps=3 -p pairs=10 -p batch_size=2 -p beta=0.5 -p dtype=float32 -p seed=3 -p seeds=1 --out out"
    )
    both = sweep.read(
        grid_file(
            tmp_path / "b.yaml",
            notebook=["01_dpo_basics", "02_safedpo"],
            cross={"betas": [[0.5], [1.0, 2.0]]},
        )
    )
    assert [r.notebook for r in sweep.runs(both)] == ["01_dpo_basics"] * 2 + ["02_safedpo"] * 2
    assert "-p 'betas=[1.0, 2.0]'" in sweep.runs(both)[1].command("out")
    assert (
        len(
            sweep.runs(
                sweep.read(grid_file(tmp_path / "s.yaml", notebook="01_dpo_basics", seeds=3))
            )
        )
        == 3
    )


@pytest.mark.parametrize(
    "grid, words",
    [
        ({}, "names no notebook"),
        ({"notebook": "01_dpo_basics", "corss": {}}, "unknown key 'corss'"),
        ({"notebook": "01_dpo_basics", "cross": {"beta": 1}}, "cross.beta=1 must be a list"),
        ({"notebook": "01_dpo_basics", "cross": {"beta": []}}, "must be a list"),
        ({"notebook": "01_dpo_basics", "cross": [1]}, "cross=[1] must hold"),
        ({"notebook": "01_dpo_basics", "zip": {"beta": [1], "steps": [1, 2]}}, "of one length"),
        (
            {"notebook": "01_dpo_basics", "fixed": {"beta": 1}, "cross": {"beta": [1]}},
            "beta is given twice",
        ),
        ({"notebook": "01_dpo_basics", "fixed": {"seed": 1}, "seeds": 2}, "both choose seeds"),
        ({"notebook": "01_dpo_basics", "seeds": 0}, "seeds=0"),
        ({"notebook": "01_dpo_basics", "seeds": [-1]}, "seeds=[-1]"),
        ({"notebook": "01_dpo_basics", "cross": {"bta": [1]}}, "did you mean 'beta'"),
        ({"notebook": "01_dpo_basics", "cross": {"beta": [1, -1]}}, "beta=-1.0"),
        ({"notebook": "09_none"}, "not found"),
        ({"notebook": "01_dpo_basics", "fixed": {"revision": None}}, "revision=None is no text"),
        (
            {"notebook": "01_dpo_basics", "cross": {"betas": [[{"a": 1}]]}},
            "is no text, number or list",
        ),
        (
            {"notebook": "01_dpo_basics", "table": "distances"},
            "saves no table of that name; it has",
        ),
        ({"notebook": "01_dpo_basics", "table": ["table"]}, "table='table'"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_starts(tmp_path, capsys, grid, words):
    file = grid_file(tmp_path / "g.yaml", **grid)
    assert cli.main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert err.startswith(f"safealign: grid file {file}")


def test_an_unreadable_grid_and_an_absent_scheduler(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("a: [")
    for file in (tmp_path / "bad.yaml", tmp_path / "none.yaml"):
        assert cli.main(["sweep", str(file)]) == 2 and "cannot be read" in capsys.readouterr().err
    with pytest.raises(Refusal, match="no Dask scheduler answers"):
        list(pool.execute([pool.Job("01_dpo_basics")], scheduler="tcp://127.0.0.1:9"))


def test_the_committed_grids_are_sound(tmp_path, capsys):
    """Each names its command, its tables are its notebook's, and every run of it is accepted; those
    on data that are not part of the kit with made ones."""
    model, pairs = model_folder(tmp_path / "m", "llama"), pairs_file(tmp_path / "pairs.jsonl")
    made = ["-p", f"model={model}", "-p", f"data={pairs}"]
    for file in sorted((ROOT / "notebooks" / "sweeps").glob("*.yaml")):
        assert f"safealign sweep notebooks/sweeps/{file.name}" in file.read_text()
        grid = sweep.read(file)
        (name,) = grid["notebook"]
        cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        source = "".join("".join(c["source"]) for c in cells)
        assert all(f'"{table}"' in source for table in grid["table"]), file.name
        given = made if "data" in grid["fixed"] else []
        assert cli.main(["sweep", str(file), *given, "--dry-run"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == len(sweep.runs(grid)) + 1


def test_parameters_that_every_run_is_given(tmp_path, capsys):
    """They stand among what is fixed, before what the file says; what it varies is refused."""
    file = grid_file(
        tmp_path / "g.yaml",
        notebook="01_dpo_basics",
        fixed={"steps": 3},
        cross={"beta": [0.5, 1]},
        seeds=2,
    )
    grid = sweep.fix(sweep.read(file), [("steps", "4"), ("dtype", "float32")])
    runs = sweep.runs(grid)
    assert len(runs) == 4 and {run.given["steps"] for run in runs} == {"4"}
    assert "-p steps=4 -p dtype=float32" in runs[0].command("out")
    for name in ("beta", "seed", "seeds"):
        assert cli.main(["sweep", str(file), "-p", f"{name}=1", "--dry-run"]) == 2
        assert f"{name}='1': the grid file varies {name}" in capsys.readouterr().err


# ---------------------------------------------------------------- execution


def test_a_failure_in_the_middle(tmp_path, capfd):
    """The rest finishes, it is listed with cell, error and command, and --retry repeats only that one."""
    stop = "import os\nif seed == 1 and os.path.exists(STOP):\n    raise ValueError('no luck')".replace(
        "STOP", repr(str(tmp_path / "stop"))
    )
    (tmp_path / "stop").touch()
    file = grid_file(
        tmp_path / "g.yaml",
        notebook=str(book(tmp_path / "toy.ipynb", stop)),
        cross={"beta": [0.5]},
        seeds=3,
    )
    out = tmp_path / "out"
    again = lambda *words: (
        cli.main(["sweep", str(file), "--out", str(out), "--workers", "1", *words]),
        capfd.readouterr(),
    )
    status, (shown, err) = again()
    assert status == 1 and "3/3 runs, 1 failed" in shown and "dashboard" not in shown
    assert re.search(r"cell 3, ValueError: no luck", err) and "--retry repeats them" in err
    assert f"safealign run {tmp_path / 'toy.ipynb'} -p beta=0.5 -p seed=1 -p seeds=1 --out" in err
    finished = {p.name: p.stat().st_mtime_ns for p in (out / "g").iterdir() if p.is_dir()}
    assert len(finished) == 2 and len(list((out / "g").glob("*.failed.ipynb"))) == 1
    status, (shown, err) = again()
    assert (
        status == 1
        and "2 done, 1 failed, 0 to do" in shown
        and "dashboard" not in shown
        and "ValueError: no luck" in err
    )
    (tmp_path / "stop").unlink()
    status, (shown, err) = again("--retry")
    assert status == 0 and "1/1 runs, 0 failed" in shown and not err
    assert (
        finished.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "g").iterdir()}.items()
    ), "the others stay as they were"
    assert not list((out / "g").glob("*.failed.ipynb")) and not list((out / "g").glob(".*"))
    table = pd.read_csv(out / "g" / "table.csv")
    assert (
        list(table.columns) == ["run_id", "notebook", "beta", "seed", "method", "measured_seed"]
        and len(table) == 3
    )
    pd.testing.assert_frame_equal(table, pd.read_parquet(out / "g" / "table.parquet"))
    assert again()[0] == 0 and set(table.seed) == {0, 1, 2}


def test_a_scheduler_started_by_hand(tmp_path):
    """The same command on a Dask scheduler and workers in processes of their own."""
    file = grid_file(tmp_path / "g.yaml", notebook=str(book(tmp_path / "toy.ipynb")), seeds=4)
    dask, address = str(Path(sys.executable).with_name("dask")), tmp_path / "scheduler.json"
    quiet = dict(cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [
        subprocess.Popen(
            [
                dask,
                "scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--dashboard-address",
                ":0",
                "--scheduler-file",
                str(address),
            ],
            **quiet,
        )
    ]
    try:
        started.append(
            subprocess.Popen(
                [
                    dask,
                    "worker",
                    "--scheduler-file",
                    str(address),
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                ],
                **quiet,
            )
        )
        for _ in range(300):
            if address.is_file() and address.read_text().strip():
                break
            time.sleep(0.1)
        where = json.loads(address.read_text())["address"]
        done = subprocess.run(
            [*COMMAND, "sweep", str(file), "--scheduler", where, "--out", str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        for process in reversed(started):
            process.terminate(), process.wait(30)
    assert done.returncode == 0 and "4/4 runs, 0 failed" in done.stdout, done.stdout + done.stderr
    assert set(pd.read_csv(tmp_path / "out" / "g" / "table.csv").seed) == {0, 1, 2, 3}


def test_a_worker_with_other_code_is_refused(tmp_path):
    outcome = pool.work(
        pool.Job(str(book(tmp_path / "toy.ipynb")), out=str(tmp_path / "out"), id="0" * 16)
    )
    assert "use the same version everywhere" in outcome.error and not (tmp_path / "out").exists()


def test_kills(tmp_path, capsys):
    """A short form of `tests/kill_sweep.py`."""
    kill_sweep.main(
        kills=5,
        runs=12,
        pause=0.3,
        seed=int(os.environ.get("SAFEALIGN_KILL_SEED", 0)),
        folder=tmp_path,
    )
    assert "12 runs of 12, all whole, nothing else" in capsys.readouterr().out


def test_two_grids_of_one_name(tmp_path, capfd):
    """Another file of the same name is refused, both named; the same file edited or moved goes on."""
    toy = str(book(tmp_path / "toy.ipynb"))
    files = [
        grid_file((tmp_path / d).mkdir() or tmp_path / d / "grid.yaml", notebook=toy, seeds=seeds)
        for d, seeds in (("a", [0]), ("b", [1]))
    ]
    out = tmp_path / "out"
    again = lambda file, *words: (
        cli.main(["sweep", str(file), "--out", str(out), "--workers", "1", *words]),
        capfd.readouterr(),
    )
    seeds = lambda: sorted(pd.read_csv(out / "grid" / "table.csv").seed)
    assert again(files[0])[0] == 0 and seeds() == [0]
    for words in ((), ("--dry-run",)):
        status, (_, err) = again(files[1], *words)
        assert (
            status == 2
            and str(files[0]) in err
            and str(files[1]) in err
            and "--out" in err
            and seeds() == [0]
        )
    grid_file(files[0], notebook=toy, seeds=[0, 2])
    (out / "grid" / "differences.csv").write_text("of a table that a user keeps")
    status, (shown, err) = again(files[0])
    assert status == 0 and not err and "1 done, 0 failed, 1 to do" in shown and seeds() == [0, 2]
    grid_file(files[0], notebook=toy, seeds=[2])
    assert again(files[0])[0] == 0 and seeds() == [2], "the table is of this grid's runs alone"
    moved = files[0].rename(tmp_path / "grid.yaml")
    status, (_, err) = again(moved)
    assert status == 0 and not err and seeds() == [2], "the same content"
    grid_file(moved, notebook=toy, seeds=[0])
    moved = moved.rename(files[0])
    status, (_, err) = again(moved)
    assert status == 0 and "which is gone" in err and seeds() == [0]
    assert (out / "grid" / "differences.csv").is_file()


def test_two_grids_of_one_name_at_the_same_instant(tmp_path, monkeypatch, capsys):
    """Both found the folder to be nobody's: the second to take it is refused, and runs nothing."""
    toy, out = str(book(tmp_path / "toy.ipynb")), tmp_path / "out"
    other = grid_file((tmp_path / "other").mkdir() or tmp_path / "other" / "g.yaml", notebook=toy)
    file, asked = grid_file(tmp_path / "g.yaml", notebook=toy, seeds=2), sweep._asked

    def slowly(grid):
        sweep._take(out / "g", other)
        return asked(grid)

    monkeypatch.setattr(sweep, "_asked", slowly)
    assert cli.main(["sweep", str(file), "--out", str(out)]) == 2
    assert f"holds the runs of {other}, another grid" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {"g.grid.yaml"}


def test_tables_of_an_earlier_form_of_the_grid_go(tmp_path):
    """What a table held of runs that are no longer asked for does not stand beside the new ones."""
    own = "if out_dir:\n    pd = __import__('pandas')\n    'study.table(\"own\", x)'\n    pd.DataFrame({'x': [1]}).to_csv(out_dir + '/own.csv', index=False)"
    toy, file = str(book(tmp_path / "toy.ipynb", own)), tmp_path / "g.yaml"
    command = ["sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "1"]
    grid_file(file, notebook=toy, seeds=[0], table="own")
    assert cli.main(command) == 0 and (tmp_path / "out" / "g" / "own.csv").is_file()
    grid_file(file, notebook=toy, seeds=[0])
    assert cli.main(command) == 0
    assert {p.name for p in (tmp_path / "out" / "g").iterdir() if p.is_file()} == {
        "table.csv",
        "table.parquet",
    }


def test_a_sweep_in_a_folder_of_any_name(tmp_path, monkeypatch):
    place = tmp_path / "a b\nc*[?] {d} %s #1 é::x"
    place.mkdir()
    book(place / "toy.ipynb")
    grid_file(place / "g.1 x.yaml", notebook="toy.ipynb", seeds=2)
    monkeypatch.chdir(place)
    assert cli.main(["sweep", "g.1 x.yaml", "--out", "o ut", "--workers", "1"]) == 0
    assert sorted(pd.read_csv(place / "o ut" / "g.1 x" / "table.csv").seed) == [0, 1]


def test_the_slurm_recipe():
    """The README's recipe, run up to the job script: one one-thread worker a job, on the kit's own Python."""
    pytest.importorskip(
        "dask_jobqueue", reason="pip install dask-jobqueue: the Slurm recipe is tested with it"
    )
    (recipe,) = re.findall(
        r"```python\n(from dask_jobqueue.*?)```", (ROOT / "README.md").read_text(), flags=re.S
    )
    names = {}
    exec(recipe.split("cluster.scale")[0], names)
    script = names["cluster"].job_script()
    names["cluster"].close()
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem=4G",
        "#SBATCH -t 04:00:00",
    ):
        assert line in script, script
    assert (
        "distributed.cli.dask_worker" in script
        and "--nthreads 1" in script
        and sys.executable in script
    )


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "grid, words",
    [
        (dict(seeds=2_000_000_000), "seeds=2000000000 must be a number above 0, at most 100000"),
        (dict(seeds=100_001), "seeds=100001 must be"),
        (
            dict(cross={name: list(range(1, 60)) for name in ("steps", "pairs", "batch_size")}),
            "asks for 205,379 runs, at most 100,000 are taken; shorten steps (59)",
        ),
        (dict(cross={"beta": [0.5]}, seeds=100_000, zip={"steps": [1, 2]}), "200,000 runs"),
        (dict(fixed={"learning_rate": "1e-400"}), "line 3: '1e-400': is nearer to 0"),
        (dict(notebook=[["a"]]), "notebook=[['a']] must be a name, or a list of names"),
        (dict(table=7), "table=7 must be a name"),
    ],
)
def test_a_grid_of_more_runs_than_anybody_means(tmp_path, capsys, grid, words):
    """None is cut in silence, and none listed before it is counted."""
    file = grid_file(tmp_path / "g.yaml", **({"notebook": "01_dpo_basics"} | grid))
    assert cli.main(["sweep", str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and len(err) < 2020


def test_all_seeds_that_a_grid_names_are_its_runs(tmp_path):
    file = grid_file(tmp_path / "g.yaml", notebook="01_dpo_basics", seeds=100_000)
    assert sweep.read(file)["seeds"] == list(range(100_000))


def test_a_parameter_that_is_given_twice_is_refused(tmp_path, capsys):
    file = grid_file(tmp_path / "g.yaml", notebook="01_dpo_basics", cross={"beta": [1]})
    words = ["-p", "steps=3", "-p", "steps=4", "--dry-run"]
    assert cli.main(["sweep", str(file), *words]) == 2
    assert "-p gives steps twice, '3' and '4'; keep one" in capsys.readouterr().err
