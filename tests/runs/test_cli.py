"""The command line: help with examples for everything, completion of names, exit status of what cannot be parsed."""

import os
import subprocess
import sys

import pytest

from safealign_utils.runs import cli

COMMANDS = ("run", "sweep", "plot", "reproduce", "report", "verify", "doctor", "notebooks")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    examples = shown.partition("examples:\n")[2].splitlines()
    assert (
        end.value.code == 0
        and examples
        and all(e.strip().startswith(f"safealign {command}") for e in examples)
    )
    for example in examples:  # what is shown can be parsed
        words = example.strip().split("  ")[0].split()[1:]
        assert cli._parser().parse_args(words).command == command


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert (
        all(f"    {command}" in shown for command in COMMANDS)
        and "register-python-argcomplete safealign" in shown
    )


@pytest.mark.parametrize(
    "words",
    [[], ["fly"], ["sweep"], ["sweep", "g.yaml", "--workers", "0"], ["run", "x", "-p", "beta"]],
)
def test_what_cannot_be_parsed_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("safealign re", {"reproduce", "report"}),
        ("safealign run 02", {"02_safedpo"}),
        ("safealign run 02_safedpo -p del", {"delta=", "deltas="}),
        ("safealign sweep --dr", {"--dry-run"}),
    ],
)
def test_completion(line, wanted, tmp_path):
    """What the shell asks: the line so far in COMP_LINE, the answers on file descriptor 8."""
    asked = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
    }
    asked |= {
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answers"),
    }
    subprocess.run(
        [sys.executable, "-m", "safealign_utils.runs.cli"], env=asked, check=True, timeout=60
    )
    answers = {
        a.strip().replace("\\", "")
        for a in (tmp_path / "answers").read_text().split("\n")
        if a.strip()
    }
    assert answers == wanted
