"""One copy of the package and one set of libraries: the kernel computes with what was checked.

A kernelspec of another environment, a PYTHONPATH in it, or another clone as the working folder
would let a kernel import another copy than the one whose code the run id names. `found` is asked in
the kernel, by the path of this file and so also where that copy is too old to know of it; nothing
of the package may be imported above.
"""

import ast
import importlib.util
import os
import platform
from importlib import metadata

PACKAGE = "safealign_utils"
FIX = (
    "start it in a folder that holds no other copy (or `python -m safealign_utils.runs.cli` in "
    "that one), and unset JUPYTER_PATH and PYTHONPATH; `jupyter kernelspec list` shows where "
    "python3 comes from"
)


def found(libraries):
    """(folder of the package that this process would import, or "", {library: version})."""
    spec = importlib.util.find_spec(PACKAGE)
    versions = {"python": platform.python_version()}
    for name in libraries:
        if name == "python":
            continue
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return os.path.dirname(os.path.abspath(spec.origin)) if spec and spec.origin else "", versions


def check(client):
    """Refuse a kernel with another copy of the package or other libraries than this process.

    `client` is an nbclient.NotebookClient whose kernel runs. Raises Refusal.
    """
    from ..engine import cache
    from ..study import records
    from ..study.settings import Refusal

    own = cache.library_versions()
    ask = f"__import__('runpy').run_path({__file__!r})['found']({list(own)!r})"
    words = dict(silent=True, store_history=False, user_expressions={"found": ask})
    reply = client.wait_for_reply(client.kc.execute("", **words))
    said = (reply or {}).get("content", {}).get("user_expressions", {}).get("found", {})
    if said.get("status") != "ok":
        why = said.get("evalue", "no answer")
        raise Refusal(f"the kernel python3 cannot be asked what it imports ({why}); {FIX}")
    folder, versions = ast.literal_eval(said["data"]["text/plain"])
    command = f"the command runs {cache.PACKAGE}"
    if not folder:
        raise Refusal(f"the kernel python3 finds no {PACKAGE}, {command}; {FIX}")
    same = {records.package_hash(where) for where in {folder, str(cache.PACKAGE)}}
    if len(same) > 1:
        raise Refusal(f"the kernel python3 would import {folder}, {command}; {FIX}")
    for name, version in own.items():
        if versions[name] != version:
            has = f"{name} {versions[name]}, the command {version}"
            raise Refusal(f"the kernel python3 has {has}; {FIX}")
