"""Every fault of `tests/faults.py`: one message, the exit status, and nothing lost."""

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import faults
import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def first():
    """What `faults.start` makes; not in /tmp, over which a fault mounts an empty folder."""
    (ROOT / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "results", ignore_cleanup_errors=True) as where:
        Path(where).chmod(0o755)
        (Path(where) / "first").mkdir()
        yield faults.start(Path(where) / "first")


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_loses_nothing_and_says_what_it_is(fault, first):
    if why := faults.lacking(fault):
        pytest.skip(why)
    place = Path(shutil.copytree(first, first.with_name("place")))
    try:
        status, said, lost = faults.happen(fault, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert status == fault.status and fault.says in said, (status, said)
    assert lost == [] and "Traceback" not in said and len(said) < 2000, (lost, said)


def test_the_committed_table_is_of_these_faults():
    lines = faults.TABLE.read_text().splitlines()
    assert [line for line in lines[1:] if not line.startswith(" ")] == [
        f.name for f in faults.FAULTS
    ]


def test_no_check_of_the_package_is_an_assert():
    """python -O leaves those out."""
    for file in (ROOT / "safealign_utils").rglob("*.py"):
        found = [
            n.lineno for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Assert)
        ]
        assert not found, (file, found)


def test_checks_hold_without_asserts(tmp_path):
    """A refused parameter, and a check of a notebook that fails."""
    code = (
        "from safealign_utils.runs import cli\n"
        "from safealign_utils.study.study import Study\n"
        "print(cli.main(['run', '01_dpo_basics', '-p', 'beta=-1']))\n"
        "try:\n"
        "    Study.check(type('S', (), {'checks': []})(), 'one is two', 1 == 2)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    words = [sys.executable, "-O", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("2\n") and "beta" in done.stderr, done.stderr
    assert "one is two" in done.stdout, done.stdout
