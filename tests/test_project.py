"""The project's frame: pinned sets that agree, top level, licence, sizes, no network."""

import re
import socket
import subprocess

import conftest
import pytest
import yaml
from helpers import ROOT

from safealign_utils.real import read_pairs

OWNERS = {
    "jupyterlab",
    "papermill",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "matplotlib",
    "seaborn",
    "nbval",
}


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def test_both_environments_hold_the_same_exact_set():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (with_pip,) = [d["pip"] for d in conda if isinstance(d, dict)]
    assert sorted(with_pip) == sorted(pins())
    assert all("==" in p for p in pins())
    names = {re.split(r"[=\[ ;]", p)[0].lower() for p in pins()}
    assert OWNERS <= names and "torch==2.13.0" in pins()
    assert not [n for n in names if n.startswith(("nvidia", "cuda", "triton"))]


def test_the_owners_packages_are_used():
    text = (
        "".join(p.read_text() for p in (ROOT / "safealign_utils").rglob("*.py"))
        + (ROOT / "Makefile").read_text()
    )
    for name in OWNERS - {"jupyterlab", "nbval"}:
        assert re.search(rf"(import|from) {name}|\b{name}\.", text), name
    assert "--nbval" in text


def test_every_notebook_is_compared_but_the_one_in_bfloat16():
    named = re.findall(r"^BOOKS +[:+]= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    books = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(" ".join(named).split()) == sorted(books - {"07_a_real_model"})


def test_top_level_is_the_agreed_one():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if not listed:
        pytest.skip("no git checkout")
    allowed = {
        "notebooks",
        "safealign_utils",
        "tests",
        "environment.yml",
        "requirements.txt",
        "README.md",
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        "CONTRIBUTING.md",
        ".ci",
        ".github",
        ".gitignore",
    }
    assert {f.split("/")[0] for f in listed} <= allowed


def test_arrows_point_one_way():
    """The science files know nothing of `runs`, and the world knows nobody but its own words."""
    for file in (ROOT / "safealign_utils").glob("*.py"):
        source = file.read_text()
        assert "from .runs" not in source and "safealign_utils.runs" not in source, file.name
        if file.name in ("world.py", "language.py", "optimum.py"):
            assert set(re.findall(r"from \.(\w*)", source)) <= {"language"}, file.name


def test_nothing_remote_is_asked_for_a_local_question(monkeypatch, tmp_path, world):
    from safealign_utils.real.models import check_model, load_policy
    from safealign_utils.references import reference_policy

    def refuse(*args, **options):
        raise OSError("the network is not for this test")

    policy = reference_policy(world, seed=0)[0]
    policy.save(tmp_path / "model")
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\na,b,c\n")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(read_pairs.load_pairs(str(tmp_path / "p.csv"))) == 1
    check_model(str(tmp_path / "model"))
    loaded = load_policy(str(tmp_path / "model"))
    assert loaded.hash == policy.hash


def test_a_model_that_cannot_be_used_is_refused(tmp_path):
    from safealign_utils.real.models import check_model

    with pytest.raises(ValueError, match="no such folder"):
        check_model("./nothing/here")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be loaded"):
        check_model(str(tmp_path))


def test_the_readme_has_no_gaps_and_no_dead_links():
    text = (ROOT / "README.md").read_text()
    assert not re.findall(r"@[A-Z0-9]+@", text)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_tests_that_start_first_are_there():
    """A file that was renamed would lose its place, and one worker would be left with it."""
    assert all((ROOT / "tests" / name).is_file() for name in conftest.LONGEST)
