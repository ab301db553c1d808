"""The Hugging Face hub: whether it can be asked, what is used in its place, and rows of data.

A connection or a name look-up that hangs holds the libraries for minutes. So one short question
decides for the process (`unreachable`): is there an answer within PATIENCE seconds? If not, only
the local cache is used, and what is not in it is refused with the way to go on.
"""

import collections
import glob
import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..engine import boundary
from ..engine.boundary import Refusal, shown

PATIENCE = 4.0  # seconds that the hub has for an answer
REMEMBER = 60.0  # seconds that the answer counts for
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
READERS = {".json": "json", ".csv": "csv", ".parquet": "parquet"}  # of `datasets`, by ending
# An escape in JSON that may be no character; others need no second look.
ODD_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
# When the hub was asked, and why it could not be reached ("": it could).
_answer = (float("-inf"), "")


# ---------------------------------------------------------------- can it be asked
def unreachable(kind="model"):
    """Why the hub cannot be asked now, "" where it can: a switch, or no answer in PATIENCE seconds.

    `kind` is model or dataset: HF_DATASETS_OFFLINE speaks of data sets only.
    """
    global _answer
    for switch in SWITCHES if kind == "dataset" else SWITCHES[:2]:
        if os.environ.get(switch, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"{switch} is set"
    if time.monotonic() - _answer[0] > REMEMBER:
        _answer = (time.monotonic(), _ask())
    return _answer[1]


def _ask():
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    heard = []

    def ask():
        try:
            status = get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code
            heard.append("" if status < 500 else f"it answers with status {status}")
        except Exception as error:
            heard.append(f"{type(error).__name__}: {str(error)[:120]}")

    # A thread, as no timeout reaches a name look-up that hangs; it is left behind then.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    reason = heard[0] if heard else f"no answer in {PATIENCE:g} s"
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason})"


def pinned(name, revision=""):
    """(hub id, revision) of `owner/name@revision`, or of a name and the revision beside it."""
    id, _, own = name.partition("@") if not os.path.exists(name) else (name, "", "")
    return id, own or revision


def located(name, revision="", *, kind="model", parameter="model"):
    """(what to load, keyword arguments of `from_pretrained`) for a folder or a hub id.

    What to load is the folder, the id, or, where the hub cannot be asked, the folder of the copy in
    the cache: told to stay in the cache, the libraries still look for some files on the hub. No
    code of a repository is run. Raises ValueError, naming `parameter`, where the cache lacks the
    revision.
    """
    id, revision = pinned(name, revision)
    options = dict(revision=None, local_files_only=True, trust_remote_code=False)
    if os.path.exists(id):
        return id, options
    check_revision(revision)
    if not unreachable(kind):
        return id, options | dict(revision=revision or None, local_files_only=False)
    from huggingface_hub import snapshot_download

    asked = dict(repo_type=kind, revision=revision or None, local_files_only=True)
    try:
        folder = snapshot_download(id, **asked)
    except (OSError, ValueError) as error:
        folder = getattr(error, "snapshot_path", None)  # a part is there
        if folder is None or kind == "dataset":
            raise absent(parameter, name, revision, kind) from error
    # Loading notices a missing file of a model, but not one of a data set.
    if kind == "dataset" and any((_folder(id, kind) / "blobs").glob("*.incomplete")):
        raise absent(parameter, name, revision, kind)
    return folder, options


def check_revision(revision):
    """Refuse a revision that can be none: it becomes part of a path in the cache."""
    if revision and not REVISION.fullmatch(revision) or ".." in revision:
        fix = "give a branch, a tag or a commit: letters, digits and . _ - /"
        raise Refusal(f"revision={shown(revision)}: is no name of a revision; {fix}")


def absent(parameter, name, revision="", kind="model"):
    """The ValueError, with the ways to go on, for what neither hub nor local cache gives."""
    id, revision = pinned(name, revision)
    reason = unreachable(kind) or "the hub was not reached"
    held = ", ".join(p.name[:12] for p in sorted(_folder(id, kind).glob("snapshots/*")))
    if held:
        held = f" whole at revision {revision or 'main'} (revisions there: {held})"
    what, more = ("file", " --repo-type dataset") if kind == "dataset" else ("folder", "")
    more += f" --revision {revision}" if revision else ""
    why = f"{reason}, and the local Hugging Face cache does not hold it{held}"
    fix = f"name a local {what}, or run `hf download {id}{more}` where there is network"
    what = f"{parameter}={shown(name)}"
    return Refusal(f"{what}: {why}; {fix}: a copy in the cache is used without")


# ---------------------------------------------------------------- revisions
def commit(name, kind="model", revision=""):
    """The commit that a hub id stands for, "" for a file or where nobody knows: for records.

    Ask after loading: the cache then knows what was loaded. Else the hub is asked, for an
    owner/name.
    """
    name, revision = pinned(name, revision)
    if os.path.exists(name):
        return ""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    check_revision(revision)
    ref = _folder(name, kind) / "refs" / (revision or "main")
    if os.path.isfile(ref):
        return boundary.read_text(ref, limit=200).strip()
    if "/" not in name or unreachable(kind):
        return ""
    from huggingface_hub import HfApi

    asked = dict(repo_type=kind, revision=revision or None, timeout=PATIENCE)
    try:
        return HfApi().repo_info(name, **asked).sha or ""
    except Exception:  # a commit is for the record: no error of the hub stops a run here
        return ""


def _folder(name, kind):
    """The folder of a model or data set in the local cache; it need not be there."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


# ---------------------------------------------------------------- rows
def load_rows(path, revision="", *, split="", config="", name="data"):
    """Yield (place for messages, row as a dict) of a .jsonl, .json, .csv or .parquet file, a folder
    or a hub data set.

    `path` may be `owner/name@revision`; `split` and `config` choose a part of a data set, without
    them all splits of the default configuration, which are added to the rows as `split`. Raises
    ValueError, calling the source `name`, where it cannot be read: offline with the ways to go on.
    """
    id, revision = pinned(path, revision)
    file, what = Path(id), f"{name}={path}"
    is_there, is_folder = os.path.exists(id), os.path.isdir(id)
    if is_there and not is_folder and file.suffix in (".jsonl", ".json"):
        yield from json_rows(file, what)
        return
    if is_there and not is_folder and file.suffix not in READERS:
        raise Refusal(f"{what}: unknown ending; use .jsonl, {', '.join(READERS)}")
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", id) and file.suffix not in (*READERS, ".jsonl")
    is_id = is_id and not (file.suffix and file.parent.is_dir())  # a file, mistyped
    if not is_there and not is_id:
        raise Refusal(f"{what}: no such file; give a path, or a hub id as owner/name")
    parts = _load(name, path, revision, split=split or None, name=config or None)
    for part, table in parts.items() if isinstance(parts, dict) else [(split, parts)]:
        for number, row in enumerate(table, start=1):
            if part:
                yield f"row {number} of {part}", {"split": part} | row
            else:
                yield f"row {number}", row


def lines(file, what):
    """Yield (number, text) of a file's lines in UTF-8, with or without a byte-order mark.

    Raises ValueError, calling the file `what`, naming the line that is in another encoding.
    """
    with boundary.open_file(file, what) as stream:
        parts = iter(lambda: stream.readline(boundary.LINE + 1), b"")
        for number, line in enumerate(parts, start=1):
            where = f"{what}, line {number}"
            if len(line) > boundary.LINE:
                most = f"more than {boundary.LINE:,} bytes in one line"
                raise Refusal(f"{where}: {most}; write a row a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                shown = line[error.start : error.start + 4]
                raise Refusal(f"{where}: not UTF-8 ({shown!r}); save it as UTF-8") from None
            if "\0" in text:
                raise Refusal(f"{where}: holds a NUL byte, as UTF-16 does; save it as UTF-8")
            yield number, text


def json_rows(file, what):
    """Yield (place, row) of a .jsonl file, or of a .json file: a list of objects, or one a line.

    Raises ValueError, calling the file `what`, naming the line and, for half an emoji, the column.
    """
    whole = _rows_of_one_value(file, what) if Path(file).suffix == ".json" else None
    for place, row, is_odd in _rows_by_line(file, what) if whole is None else whole:
        if is_odd:
            _check_characters(row, f"{what}, {place}")
        if boundary.is_deep(row):
            words = f"is nested more than {boundary.DEEPEST} times; write it flat"
            raise Refusal(f"{what}, {place}: {words}")
        yield place, row


def _rows_of_one_value(file, what):
    """[(place, row, may hold what is no character)] of one list or object; None for several."""
    boundary.open_file(file, what, boundary.ROWS).close()
    text = "".join(text for _, text in lines(file, what))
    try:
        found = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data" and "\n" in text.strip():
            return None
        at = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        fix = "a list of objects, or one a line"
        raise Refusal(f"{what}{at}: not JSON ({_reason(error)}); {fix}") from None
    rows, is_odd = found if isinstance(found, list) else [found], bool(ODD_ESCAPE.search(text))
    return [(f"row {number}", row, is_odd) for number, row in enumerate(rows, start=1)]


def _rows_by_line(file, what):
    """Yield the same of a file with a value a line."""
    for number, text in lines(file, what):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            why = f"not JSON ({_reason(error)}); one object a line"
            raise Refusal(f"{what}, line {number}: {why}") from None
        yield f"line {number}", row, bool(ODD_ESCAPE.search(text))


def _reason(error):
    return getattr(error, "msg", "") or str(error).splitlines()[0][:80]


def _check_characters(value, where, column=""):
    """Refuse texts that cannot be written as UTF-8, and NUL, naming the column."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_characters([key, inner], where, column or key)
    elif isinstance(value, list):
        for inner in value:
            _check_characters(inner, where, column)
    elif isinstance(value, str):
        bad = next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), "")
        if bad:
            words = "half an emoji (a lone surrogate)" if bad != "\0" else "the character NUL"
            found = f"{words} in {ascii(value[max(0, value.index(bad) - 20) :][:40])}"
            where = f"{where}, column {ascii(column)}"
            raise Refusal(f"{where}: {found}; take it out, or write it whole")


# ---------------------------------------------------------------- the library `datasets`
def _load(parameter, path, revision, **which):
    """The `datasets.Dataset` of a file or of one split, or a dict of those of all splits.

    `which` says the split and the configuration (`name`).
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    # Reading a file must ask nobody; this asks even for a .csv.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    here = Path(pinned(path)[0])
    try:
        if os.path.exists(here):
            return _load_local(here, f"{parameter}={path}", which)
        place, options = located(path, revision, kind="dataset", parameter=parameter)
        if not os.path.exists(place):
            return datasets.load_dataset(place, revision=options["revision"], **which)
        return _load_local(Path(place), f"{parameter}={path}", which, is_whole=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if str(error).startswith(f"{parameter}="):
            raise
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        fix = "a local file works offline"
        fix = "is it as its ending says?" if os.path.exists(here) else fix
        raise Refusal(f"{parameter}={path}: cannot be read ({reason}); {fix}") from error


def _load_local(path, what, which, is_whole=False):
    """The same of a file or folder; unless it is known as whole, a folder must be read whole.

    It is read through links in a new folder, and prepared there: the library takes a path for a
    pattern ([ ] * ?), and its own cache may take an older copy of a file for it.
    """
    import datasets

    _check_encodings(path, what)
    with tempfile.TemporaryDirectory(prefix="safealign-rows-") as folder:
        link, cache = _linked(path, Path(folder).resolve()), f"{folder}/cache"
        given = dict(cache_dir=cache, keep_in_memory=True)
        if path.is_file():
            given |= dict(data_files=glob.escape(str(link)), split="train")
            return datasets.load_dataset(READERS[path.suffix], **given)
        if not is_whole:
            builder = datasets.load_dataset_builder(str(link), which["name"], cache_dir=cache)
            _check_all_read(builder, path, what)
        return datasets.load_dataset(str(link), **given, **which)


def _linked(path, folder):
    """A file or folder as links in another folder; the new path has no sign of a pattern."""
    if path.is_file():
        (folder / f"rows{path.suffix}").symlink_to(path.resolve())
        return folder / f"rows{path.suffix}"
    for here, _, names in os.walk(path):
        inner = folder / "rows" / Path(here).relative_to(path)
        inner.mkdir()
        for name in names:
            (inner / name).symlink_to(Path(here, name).resolve())
    return folder / "rows"


def _check_encodings(path, what):
    """Refuse what `datasets` would misread in silence: encodings, and half an emoji; and what would
    hold or end the process."""
    for file in boundary.inside(path, what) if path.is_dir() else [path]:
        if os.path.exists(file) and not os.path.isdir(file):
            boundary.open_file(file, f"{what}: {file.name}", boundary.ROWS * 64).close()
        if file.is_file() and file.suffix in (".csv", ".json", ".jsonl"):
            named = f"{what}/{file.relative_to(path)}" if path.is_dir() else what
            if file.suffix == ".csv":
                collections.deque(lines(file, named), maxlen=0)
                continue
            for place, row in json_rows(file, named):
                if not isinstance(row, dict):  # which would end the process there
                    words = f"the row is not an object with named columns, found {shown(row)}"
                    raise Refusal(f"{named}, {place}: {words}")


def _check_all_read(builder, folder, what):
    """Refuse a folder of which `datasets` would leave out a file whose name says no split."""
    if (folder / "README.md").is_file() or (folder / ".huggingface.yaml").is_file():
        return  # its card may name the files
    files = (builder.config.data_files or {}).values()
    read = {Path(file).name for of_split in files for file in of_split}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in (*READERS, ".jsonl") and file.name not in read:
            why = "would not be read, as its name says no split and others do"
            fix = "begin its name with train, validation or test, or move it out of the folder"
            raise Refusal(f"{what}: {str(file.relative_to(folder))!r} {why}; {fix}")
