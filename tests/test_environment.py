"""What surrounds a run: another copy of the package, variables of launchers and libraries."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import toy
from conftest import ROOT

from safealign_utils import cache
from safealign_utils.runs import cli, copies, runner

STUDY = """from safealign_utils.runs.study import Study
study = Study("toy", globals())
study.metrics["toy.value"] = 1.0
study.finish()"""


@pytest.fixture
def book(tmp_path):
    return toy.notebook(tmp_path / "toy.ipynb", toy.CELL + "\nmax_length: int = 64", STUDY)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another clone, of an older version that knows nothing of the check."""
    folder = tmp_path_factory.mktemp("other_clone")
    package = shutil.copytree(ROOT / "safealign_utils", folder / "safealign_utils")
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    (package / "runs" / "copies.py").unlink()
    train = package / "train.py"
    train.write_text(train.read_text() + "\nOTHER = True\n")
    return folder


@pytest.fixture
def kernelspec(tmp_path):
    """A function that puts a kernelspec python3 in front of the environment's own; returns JUPYTER_PATH."""

    def make(**spec):
        folder = tmp_path / "jupyter" / "kernels" / "python3"
        folder.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = dict(argv=argv, display_name="site", language="python") | spec
        (folder / "kernel.json").write_text(json.dumps(spec))
        return str(tmp_path / "jupyter")

    return make


def refused(book, capsys):
    out = book.parent / "out"
    assert cli.main(["run", str(book), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not list(out.glob("[!.]*")), "nothing is written"
    return said


def test_a_kernel_of_another_copy_is_refused(book, other, kernelspec, monkeypatch, capsys):
    """Before its first cell, with both folders and the fix. A copy of the same content will do."""
    monkeypatch.setenv("JUPYTER_PATH", kernelspec(env={"PYTHONPATH": str(other)}))
    said = refused(book, capsys)
    assert f"would import {other / 'safealign_utils'}, the command runs {ROOT / 'safealign_utils'}" in said
    assert "unset JUPYTER_PATH" in said
    with pytest.raises(runner.Refusal, match="would import"):
        runner.regenerate(book)


def test_a_copy_of_the_same_content_will_do(book, kernelspec, monkeypatch, tmp_path):
    same = shutil.copytree(ROOT / "safealign_utils", tmp_path / "same" / "safealign_utils")
    monkeypatch.setenv("JUPYTER_PATH", kernelspec(env={"PYTHONPATH": str(same.parent)}))
    assert runner.run(str(book), out=tmp_path / "out")[2]


def test_a_kernel_without_the_package_or_with_other_libraries_is_refused(book, monkeypatch, capsys):
    real = copies.check

    def found(answer):
        class Client:
            kc = type("Kernel", (), {"execute": staticmethod(lambda *a, **k: "id")})

            def wait_for_reply(self, id):
                return {"content": {"user_expressions": {"found": answer}}}

        return lambda client: real(Client())

    package, versions = copies.found(["torch", "transformers", "accelerate", "nothing_of_the_kind"])
    assert package == str(ROOT / "safealign_utils") and versions.pop("nothing_of_the_kind") == "none"
    for answer, words in (
        (("", versions), "finds no safealign_utils"),
        ((package, versions | {"torch": "1.0"}), "has torch 1.0, the command "),
    ):
        monkeypatch.setattr(copies, "check", found({"status": "ok", "data": {"text/plain": repr(answer)}}))
        assert words in refused(book, capsys)
    monkeypatch.setattr(copies, "check", found({"status": "error", "evalue": "broken"}))
    assert "cannot be asked what it imports (broken)" in refused(book, capsys)


STARTED = "import sys; sys.path[0] = {root!r}; from safealign_utils.runs.cli import main; sys.exit(main({words!r}))"


def test_started_in_another_clone(book, other, tmp_path):
    """An installed package, and another copy where the command starts: a new kernel would look there first.

    Warm kernels come from a process that has imported this package, so a sweep computes with it, run after run.
    """
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(f"notebook: {book}\nseeds: [0, 1]\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONWARNINGS": "ignore"}

    def start(*words):
        program = STARTED.format(root=str(ROOT), words=[*map(str, words), "--out", str(out)])
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=other, env=env, capture_output=True, text=True, timeout=200)

    done = start("run", book)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"would import {other / 'safealign_utils'}, the command runs {ROOT / 'safealign_utils'}" in done.stderr
    assert "start it in a folder that holds no other copy" in done.stderr
    done = start("sweep", grid, "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    codes = [json.loads(p.read_text())["provenance"]["code"] for p in out.rglob("record.json")]
    assert codes == [cache.code_hash()] * 2


def test_a_notebook_that_brings_its_own_copy_is_noticed_at_the_end(book, other, tmp_path):
    """Whatever the first look said, a record of other code does not count."""
    path = f"import sys\nsys.path.insert(0, {str(other)!r})\n"
    toy.notebook(book, toy.CELL + "\nmax_length: int = 64", path + STUDY)
    with pytest.raises(runner.Failed, match="ran other code than .*safealign_utils"):
        runner.run(str(book), out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/record.json"))
