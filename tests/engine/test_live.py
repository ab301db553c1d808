"""Half-made folders: the work of a living process is never taken for a leftover, wherever that process lives."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.toy import CELL, notebook

from safealign_utils.engine import live
from safealign_utils.runs import runner
from safealign_utils.study import records

OLD = time.time() - 2 * live.WEEK
SLOW = """import pathlib, time
(pathlib.Path(FOLDER) / str(time.monotonic_ns())).touch()
while len(list(pathlib.Path(FOLDER).iterdir())) < 2:
    time.sleep(0.05)
from safealign_utils.study import records
records.write(out_dir, notebook="toy", run_id="", parameters={"seed": seed}, metrics={"toy.seed": seed}, claims=[],
              timings={"total": 1.0, "peak_memory_bytes": 1}, tables=[], figures=[], provenance={})"""


def folder_of(tmp_path, *, space, pid, age=0.0, name="a"):
    path = tmp_path / f".{name}.12345678.{space}.{pid}.partial"
    path.mkdir()
    (path / "part").write_text("x")
    for one in (path / "part", path):
        os.utime(one, (time.time() - age, time.time() - age))
    return path


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_here_the_process_decides(tmp_path):
    here = live.hidden("x", "partial").split(".")[-3]
    gone = folder_of(tmp_path, space=here, pid=dead_pid())
    mine = folder_of(tmp_path, space=here, pid=os.getpid(), age=2 * live.WEEK)
    file = tmp_path / f".table.csv.12345678.{here}.{gone.name.split('.')[-2]}.partial"
    file.write_text("half")
    live.remove_leftovers(tmp_path)
    assert not gone.exists() and not file.exists() and mine.exists()


def test_what_another_living_process_makes_is_left_alone(tmp_path, monkeypatch):
    """Also one of another user, whom this one may not ask."""
    here = live.hidden("x", "partial").split(".")[-3]
    other = subprocess.Popen(["sleep", "60"])
    made = [folder_of(tmp_path, space=here, pid=other.pid, age=2 * live.WEEK)]
    made.append(tmp_path / f".entry.12345678.{here}.{other.pid}.old")
    made[1].write_text("half")
    live.remove_leftovers(tmp_path)
    assert all(path.exists() for path in made)

    def forbidden(pid, signal):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", forbidden)
        live.remove_leftovers(tmp_path)
    assert all(path.exists() for path in made)
    other.kill()
    other.wait()
    live.remove_leftovers(tmp_path)
    assert not any(path.exists() for path in made)


def test_a_file_is_there_in_full_or_not_at_all(tmp_path):
    """Also where its folder is new, where writing stops, and where an older one must stay."""
    file = tmp_path / "new" / "file.txt"
    with live.whole(file) as beside:
        beside.write_text("one")
        assert not file.exists() and beside.parent == file.parent
    with pytest.raises(RuntimeError), live.whole(file) as beside:
        beside.write_text("tw")
        raise RuntimeError
    with pytest.raises(FileExistsError), live.whole(file, put=os.link) as beside:
        beside.write_text("three")
    assert file.read_text() == "one" and [p.name for p in file.parent.iterdir()] == ["file.txt"]


def test_elsewhere_a_week_without_change_and_without_a_lock(tmp_path):
    """The same host name and number from another container, host or start of the machine say nothing here."""
    host = live.hidden("x", "partial").split(".")[-3].rpartition("-")[0]
    other = f"{host}-{'0' * 12}"
    young = folder_of(tmp_path, space=other, pid=dead_pid(), name="young")
    former = folder_of(
        tmp_path, space=host, pid=dead_pid(), name="former"
    )  # a name from before there were spaces
    old = folder_of(tmp_path, space=other, pid=dead_pid(), age=2 * live.WEEK, name="old")
    busy = folder_of(tmp_path, space=other, pid=dead_pid(), age=2 * live.WEEK, name="busy")
    (busy / "part").write_text("written just now, which a folder's own time does not show")
    os.utime(busy, (OLD, OLD))
    held = folder_of(tmp_path, space=other, pid=dead_pid(), age=2 * live.WEEK, name="held")
    with live.claim(held):
        for one in (held / live.LOCK, held):
            os.utime(one, (OLD, OLD))
        assert live.is_live(held)
        live.remove_leftovers(tmp_path)
        left = {path for path in (young, former, old, busy, held) if path.exists()}
    assert left == {young, former, busy, held}
    assert not (held / live.LOCK).exists(), "nothing of the lock stays"


def test_a_lock_ends_with_its_owner(tmp_path):
    held = folder_of(tmp_path, space="elsewhere-000000000000", pid=1)
    code = f"from safealign_utils.engine import live\nwith live.claim({str(held)!r}):\n    print(flush=True)\n    input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    owner.stdout.readline()
    old = lambda: [os.utime(one, (OLD, OLD)) for one in (*held.iterdir(), held)]
    old()
    live.remove_leftovers(tmp_path)
    assert held.exists()
    owner.kill()
    owner.wait()
    live.remove_leftovers(tmp_path)
    assert not held.exists()


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"
)
def test_a_container_with_the_same_host_name(tmp_path):
    """Its numbers of processes are its own: what runs there is left alone here, and what runs here there."""
    own = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    try:
        subprocess.run([*own, "pass"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("no PID namespaces here")
    code = f"""import os, pathlib
from safealign_utils.engine import live
live.remove_leftovers({str(tmp_path)!r})
(pathlib.Path({str(tmp_path)!r}) / live.hidden('there', 'partial')).mkdir()
print(os.getpid(), flush=True)
input()"""
    mine = tmp_path / live.hidden("mine", "partial")
    mine.mkdir()
    with live.claim(mine):
        container = subprocess.Popen([*own, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert container.stdout.readline().strip() == b"1", "a process with a number of its own"
        live.remove_leftovers(tmp_path)
        kinds = {path.name.split(".")[1] for path in tmp_path.iterdir()}
        container.communicate(b"\n")
    assert kinds == {"mine", "there"}


def test_two_processes_with_the_same_run(tmp_path):
    """Both finish well, one whole folder stays, and nothing beside it."""
    meet, out = tmp_path / "meet", tmp_path / "out"
    meet.mkdir()
    book = notebook(tmp_path / "toy.ipynb", CELL, SLOW.replace("FOLDER", repr(str(meet))))
    command = [
        sys.executable,
        "-m",
        "safealign_utils.runs.cli",
        "run",
        str(book),
        "--out",
        str(out),
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0] and not any(err for _, err in said), (
        said
    )
    assert all("complete in" in words for words, _ in said), said
    (folder,) = out.iterdir()
    assert records.read(folder)["run_id"] == folder.name
    assert {path.name for path in folder.iterdir()} == {"record.json", "toy.ipynb"}


def made(path, id):
    path.mkdir()
    whole = dict(notebook="x", run_id=id, parameters={}, metrics={}, timings={}, claims=[])
    records.write(path, **whole, tables=[], figures=[], provenance={})
    return path


@pytest.mark.parametrize(
    "there, stays",
    [("same", "first"), ("other", "second"), ("damaged", "second"), (None, "second")],
)
def test_which_folder_stays(tmp_path, there, stays):
    """The same run that another process finished first stays; all else gives way to the new one."""
    final = tmp_path / "final"
    if there:
        made(final, there)
        (final / "first").touch()
    if there == "damaged":
        (final / "record.json").write_text("{")
    partial = made(tmp_path / live.hidden("final", "partial"), "same")
    (partial / "second").touch()
    runner._replace(partial, final)
    assert (final / stays).exists() and len(list(final.iterdir())) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"final", partial.name}


def test_a_folder_that_comes_between_two_steps(tmp_path, monkeypatch):
    """Another process puts its folder there after this one has moved the old one aside."""
    final = made(tmp_path / "final", "other")
    partial, rename, late = (
        made(tmp_path / live.hidden("final", "partial"), "same"),
        Path.rename,
        [],
    )

    def slowly(path, target):
        out = rename(path, target)
        if path == final and not late:
            late.append(made(final, "same"))
        return out

    monkeypatch.setattr(Path, "rename", slowly)
    runner._replace(partial, final)
    assert late and records.read(final)["run_id"] == "same"
