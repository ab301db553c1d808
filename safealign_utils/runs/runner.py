"""Run a notebook through papermill: checked before, resumable, written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import warnings
from pathlib import Path

from ..engine import boundary, cache, distributed, room
from ..engine.live import claim, hidden, put, remove_leftovers, whole, whole_folder
from ..engine.torch_setup import threads
from ..study import inputs, records
from ..study import settings as parameters
from ..study.settings import Refusal
from . import copies, folders, fresh_kernel

ROOT = cache.PACKAGE.parent
SMALL = 'profile: str = "small"'  # how a parameters cell writes it


class Failed(RuntimeError):
    """A notebook that stopped with an error, or ended without a complete record."""


class Died(Failed):
    """A kernel that was killed, or never started: no verdict on the notebook."""


def find(name):
    """A notebook by path, or by name in ./notebooks or the project's notebooks."""
    name = os.path.expanduser(name)
    tried = [Path(name), Path("notebooks") / f"{name}.ipynb", ROOT / "notebooks" / f"{name}.ipynb"]
    for path in tried:
        if os.path.isfile(path):
            return path.resolve()
    known = ", ".join(p.stem for p in numbered())
    what = f"notebook={boundary.shown(name)}"
    raise Refusal(f"{what}: not found; name a file, or one of {known}")


def numbered():
    """The project's numbered notebooks, in reading order."""
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def comparable():
    """Those whose numbers are the same on every machine: none that computes in bfloat16."""
    return [path for path in numbered() if path.stem not in parameters.NOT_THE_SAME]


def prepare(notebook, given=(), files=()):
    """(path, settings, run_id), everything checked. Raises Refusal before a kernel starts."""
    with boundary.reading("the environment", "unset what it names"):
        distributed.check_environment()
        threads()
        room.limit()
    path = find(notebook)
    cell = parameters.read_cell(path)
    faults = [f"lacks {name!r}" for name in ("profile", "out_dir") if name not in cell]
    unknown = [name for name in cell if name not in parameters.FIELDS]
    faults += [f"has {name!r}, which the kit does not know" for name in unknown]
    if faults:
        fix = "see safealign_utils/study/settings.py"
        raise Refusal(f"notebook={path.name}: its parameters cell {faults[0]}; {fix}")
    values = parameters.collect(cell, given, files, path.stem)
    settings = parameters.resolve(values, path.stem)
    parameters.check_used(settings, cell, values, given)
    if settings["device"] == "cuda":
        parameters.pick_device("cuda")
    contents = inputs.check(settings, {name for name, value in values.items() if not value})
    parameters.say_unused(settings, cell, values)
    return path, settings, records.run_id(path, settings, contents)


def run(notebook, given=(), files=(), *, out="results/runs", name=None, expect=""):
    """Execute a notebook unless its complete record is there: (folder, record, whether it ran now).

    The folder is `out/run_id`, or `out/name`. `expect` is the run id that another process found:
    another one is refused. Raises Refusal (bad input, a folder that cannot be written), Died (the
    kernel did) or Failed: the disk is full, or the notebook broke and its executed copy is kept
    beside the folder. Of several processes number 0 writes the folder.
    """
    path, settings, id = prepare(notebook, given, files)
    if expect and id != expect:
        why = f"{expect} where the sweep was started: package, notebook or data differ"
        fix = "use the same version everywhere, and do not edit it while a sweep runs"
        raise Refusal(f"run_id={id} here, {why}; {fix}")
    final = Path(os.path.realpath(out)) / (name or id)
    record = records.read(final)
    complete = bool(record and record["run_id"] == id)
    if distributed.agree_apart(f"{final} is complete as {id}", complete):
        return final, record or records.read(final), False
    folders.check_cache()
    folders.check_out(out)
    folders.stand_in_for_home()
    remove_leftovers(final.parent)
    try:
        with whole_folder(final) as partial:
            with claim(partial):
                _execute(path, {**settings, "out_dir": str(partial)}, partial, final)
                if distributed.rank() > 0:
                    return final, records.read(partial), True
                record = _complete(partial, id)
            _replace(partial, final)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error}); make room, or name another --out"
        raise Failed(f"{path.stem}: {final.parent} {why}") from None
    return final, record, True


def _execute(path, settings, partial, final):
    """papermill into the partial folder; an error keeps the executed notebook beside the final."""
    code = cache.code_hash()
    fresh_kernel.fork_server()  # it imports what a kernel needs while papermill is imported here
    from .engines import NAME, papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target = partial / path.name
    # papermill fills in braces
    literal = [str(p).replace("{", "{{").replace("}", "}}") for p in (path, target)]
    number = f".process{distributed.rank()}" if distributed.rank() else ""
    failed = final.parent / f"{final.name}{number}.failed.ipynb"
    how = dict(kernel_name="python3", engine_name=NAME, request_save_on_cell_execute=False)
    try:
        with quiet():
            papermill.execute_notebook(*literal, settings, progress_bar=False, **how)
    except papermill.PapermillExecutionError as error:
        where = f"cell {error.exec_count}, {error.ename}: {error.evalue.strip()}"
        os.replace(target, failed)
        where += "; make room, and run it again" if f"Errno {errno.ENOSPC}" in error.evalue else ""
        where += f"\nthe executed notebook is kept as {failed}"
        raise Failed(f"{path.stem} stopped in {where}") from None
    except (Refusal, OSError):
        raise
    except Exception as error:  # the kernel died, or never started
        why = f"the kernel did not finish ({type(error).__name__}: {error})"
        raise Died(f"{path.stem}: {why}") from error
    record, fault = records.read(partial), ""
    if record is None:
        fault = "ended without a complete record"
    elif record["provenance"].get("code", code) != code:
        fault = f"ran other code than {cache.PACKAGE} (edited, or another copy?); run it again"
    if fault:
        os.replace(target, failed)
        raise Failed(f"{path.stem} {fault}; the executed notebook is kept as {failed}")
    failed.unlink(missing_ok=True)


def failure(out, name):
    """What stopped the run that left `<name>.failed.ipynb`; "" where there is none."""
    file = Path(out) / f"{name}.failed.ipynb"
    if not file.is_file():
        return ""
    try:
        with boundary.reading(str(file), "run it again"):
            for cell in boundary.read_cells(file):
                for output in cell["outputs"]:
                    if output["output_type"] == "error":
                        said = f"{output['ename']}: {output['evalue'].strip()}"
                        where = f"stopped in cell {cell['execution_count']}"
                        return boundary.brief(f"{where}, {said}; see {file}", lines=True)
    except Refusal:
        return f"stopped, and its executed notebook is damaged; see {file}"
    return f"ended without a complete record; see {file}"


@contextlib.contextmanager
def quiet():
    """No warnings: those of papermill and its kernel manager help no user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _complete(partial, id):
    """Add the run id, which the notebook cannot know, to the record; returns it."""
    file = partial / "record.json"
    record = json.loads(file.read_text(encoding="utf-8")) | {"run_id": id}
    cache.write_whole(file, json.dumps(record, indent=1) + "\n")
    return record


def _replace(partial, final):
    """Put the finished folder in its place. An older one is moved aside first, and removed after.

    Where the same run was finished elsewhere in the meantime, that one stays.
    """
    id = records.read(partial)["run_id"]
    for left in reversed(range(10)):  # other processes may put theirs there between two steps
        try:
            return put(partial, final)
        except OSError:
            there = records.read(final)
            if there and there["run_id"] == id:
                return None
            if not left or not final.exists():
                raise
        old = final.with_name(hidden(final.name, "old"))
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def regenerate(path):
    """Execute a notebook in place and keep only what is stable; True if it changed.

    One of a real model is executed at the profile full, and its own outputs say so.
    """
    threads()
    fresh_kernel.fork_server()
    from .engines import KERNEL, nbclient, nbformat

    before = path.read_bytes()
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    given = dict(kernel_name="python3", timeout=None, resources=where, **KERNEL)
    client = nbclient.NotebookClient(book, **given)
    written = [cell.source for cell in book.cells]
    for cell in book.cells if path.stem in parameters.NOT_THE_SAME else ():
        cell.source = cell.source.replace(SMALL, SMALL.replace("small", "full"))
    with quiet(), client.setup_kernel():
        copies.check(client)
        for number, cell in enumerate(book.cells):
            client.execute_cell(cell, number)
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    for n, cell in enumerate(book.cells):
        cell.source = written[n]
        cell["id"] = hashlib.sha256(f"{path.name} {n}".encode()).hexdigest()[:8]
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    with whole(path) as beside:
        nbformat.write(book, beside)
    return path.read_bytes() != before
