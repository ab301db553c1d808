"""The command line: help with examples for everything, completion of names, exit status of what cannot be used."""

import errno
import os
import re
import subprocess
import sys

import pytest
import typer

from safealign_utils.engine.boundary import Refusal
from safealign_utils.runs import cli, runner
from safealign_utils.study import settings


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


COMMANDS = (
    "run",
    "sweep",
    "plot",
    "reproduce",
    "report",
    "verify",
    "doctor",
    "cache",
    "fetch",
    "notebooks",
)
GROUP = typer.main.get_command(cli.app)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command, capsys):
    assert cli.main([command, "--help"]) == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert examples
    for example in examples:
        safealign, name, *words = example.strip().split("  ")[0].split()
        assert (safealign, name) == ("safealign", command)
        GROUP.commands[name].make_context(name, [*words])  # what is shown can be parsed
        if name == "run":
            cell = settings.read_cell(runner.find(words[0]))
            given = [b.partition("=")[0] for a, b in zip(words, words[1:]) if a == "-p"]
            assert set(given) <= set(cell), "and names parameters of the notebook"


def test_every_command_is_listed(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert list(GROUP.commands) == list(COMMANDS)
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert "--debug" in shown and "--show-completion" in shown and "..." not in shown[100:]


def test_help_is_fast_and_plain():
    """Nothing heavy is imported for it, and no box is drawn."""
    code = "import sys; from safealign_utils.runs import cli; cli.main(['--help'])\n"
    code += "print([m for m in ('torch', 'numpy', 'pandas', 'dask', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.isascii() and done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "Missing command; `safealign --help` shows how"),
        (["fly"], "No such command 'fly'"),
        (["sweep"], "Missing argument 'file'; `safealign sweep --help` shows how"),
        (["sweep", "g.yaml", "--workers", "0"], "'--workers': '0': a whole number of processes"),
        (["sweep", "g.yaml", "--workers", "two"], "'two': a whole number of processes"),
        (["run", "x", "-p", "beta"], "'-p': 'beta': write name=value"),
        (["run", "x", "-p", "=1"], "'-p': '=1': write name=value"),
        (["run", "x", "--out", " "], "'--out': ' ': name a folder, . for this one"),
        (["run", "x", "--bta"], "No such option: --bta"),
        (["verify", "--profile", "big"], "'big' is not one of 'small', 'full'"),
        (["run", "o\udcff"], "is no UTF-8 text; rename the file or folder"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_and_status_2(words, said, capsys):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("safealign: ") and said in err and err.count("\n") == 1


def test_options_reach_the_run(monkeypatch):
    asked = {}

    def run(notebook, given, files, *, out):
        asked.update(notebook=notebook, given=given, files=files, out=out)
        raise runner.Failed("stop here")

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setenv("HOME", "/home/me")
    words = ["-p", "beta=1", "-p", "data=a=b,c=d", "-f", "~/one.yaml", "-f", "two.yaml"]
    assert cli.main(["run", "x", *words, "--out=~/mine"]) == 1
    assert asked == {
        "notebook": "x",
        "given": [("beta", "1"), ("data", "a=b,c=d")],
        "files": ["/home/me/one.yaml", "two.yaml"],
        "out": "/home/me/mine",
    }


@pytest.mark.parametrize(
    "error, status, said",
    [
        (runner.Failed("it stopped"), 1, "it stopped"),
        (ValueError("SAFEALIGN_THREADS='abc': a whole number; unset it"), 2, "THREADS='abc'"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "/x: cannot be written (No"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9999), 2, "(File name too long)"),
        (ValueError("shapes differ"), 1, "stopped by ValueError: shapes differ; add --debug"),
        (OSError(errno.EIO, "Input/output error"), 1, "stopped by OSError: Input/output error"),
        (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
        (MemoryError(), 1, "more memory than there is"),
        (Panic("index out of bounds"), 1, "stopped by Panic: index out of bounds"),
        (Refusal("data='" + 10**6 * "x" + "': " + 10**6 * "no such file "), 2, "data='xxx"),
    ],
)
def test_whatever_happens_is_one_line_and_a_status(error, status, said, monkeypatch, capsys):
    """Bad input is 2, all else 1; --debug shows the traceback of each."""

    def raises(*_, **__):
        raise error

    monkeypatch.setattr(runner, "run", raises)
    assert cli.main(["run", "x"]) == status
    err = capsys.readouterr().err
    assert err.startswith("safealign: ") and said in err and err.count("\n") == 1
    assert len(err) < 2020 and not re.search(r"\S{201}", err)
    with pytest.raises(type(error)):
        cli.main(["--debug", "run", "x"])


@pytest.mark.parametrize(
    "words", ["report --results", "plot", "sweep", "run x -f", "run", "run x --out"]
)
def test_a_name_that_no_file_can_have_is_refused(words, capsys):
    assert cli.main([*words.split(), "x" * 5000]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and len(err) < 500 and "stopped by" not in err, err


def test_ctrl_c_leaves_at_once(monkeypatch):
    from safealign_utils.runs import ending

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    class Left(BaseException):
        pass

    def leave():
        raise Left

    monkeypatch.setattr(runner, "run", interrupted)
    monkeypatch.setattr(ending, "leave", leave)
    with pytest.raises(Left):
        cli.main(["run", "x"])


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("re", {"reproduce", "report"}),
        ("run 02", {"02_safedpo"}),
        ("verify 01_dpo_basics 02", {"02_safedpo"}),
        ("run 02_safedpo -p del", {"delta=", "deltas="}),
        ("run 02_safedpo -p beta=1 -p del", {"delta=", "deltas="}),
        ("run no_such_notebook -p betas", {"betas="}),
        ("sweep --dr", {"--dry-run"}),
        ("report --profile f", {"full"}),
    ],
)
def test_completion(line, wanted):
    """What the shell asks: the words of the line so far."""
    words = ["safealign", *line.split()]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "safealign_utils.runs.cli"],
        env={**os.environ, **asked, "_SAFEALIGN_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(done.stdout.split()) == wanted and not done.stderr


def test_a_run_that_was_there_says_its_verdicts_again(capsys):
    claim = dict(id="a", verdict="does_not_hold", value=0.25, n=8)
    record = dict(notebook="01", metrics={"a": 1.0}, claims=[claim], timings={})
    cli._report(record, "folder", False)
    assert capsys.readouterr().out == (
        "01: already complete, not run again\n  folder\n  [does not hold] a: 0.2500 (n = 8)\n"
    )
    cli._report(record | dict(metrics={}, claims=[]), "folder", True)
    assert capsys.readouterr().out.endswith(
        "  no result: the executed notebook says what it needs\n"
    )
