"""What `data` and `eval_prompts` name: one path or hub id, or several as `name=path,name=path`.

Everybody who reads, hashes or records these asks here, so that all of them mean the same files.
"""

import os
import re
from pathlib import Path

from ..engine import boundary
from ..engine.boundary import Refusal, shown

LONGEST = 2**14  # characters of a value
NEXT = re.compile(r"\s*,\s*(?=[\w.-]+\s*=)")  # a comma that may begin the next `name=path`
NAMED = re.compile(r"\s*([\w.-]+)\s*=\s*(.*?)\s*", re.DOTALL)
FILES = (".csv", ".json", ".jsonl", ".parquet", ".txt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def sources(value, parameter="data"):
    """[(name, path)] of what a parameter names; the name is "" where none is given.

    What exists as it is written is one path, whatever signs it holds. Otherwise the value is cut at
    commas and equals signs such that every path exists or is a hub id. Raises ValueError, naming
    `parameter`, where that can be done in no way or in several.
    """
    value = str(value)
    if len(value) > LONGEST:
        fix = "name a folder that holds the files"
        words = f"has {len(value):,} characters, at most {LONGEST:,} are read"
        raise Refusal(f"{parameter}={shown(value)}: {words}; {fix}")
    if os.path.exists(value) or NAMED.fullmatch(value) is None:
        return [("", value)]
    with boundary.reading(f"{parameter}={shown(value)}", "give fewer of name=path"):
        return _several(value, parameter)


def _several(value, parameter):
    found = list(_readings(value))
    if len(found) == 1:
        return found[0]
    if found:
        why = f"can be read in {len(found)} ways"
        raise Refusal(f"{parameter}={shown(value)}: {why}; give the paths in full, from '/'")
    paths = [NAMED.fullmatch(part).group(2) for part in NEXT.split(value)]
    missing = next((path for path in paths if not _stands(path)), paths[0])
    fix = "give a path, a hub id as owner/name, or several as name=path,name=path"
    raise Refusal(f"{parameter}={shown(value)[1:-1]}: no such file: {shown(missing)}; {fix}")


def absolute(value, parameter="data"):
    """The same value with every local path in full, for a process that stands in another folder."""
    full = []
    for name, path in sources(value, parameter):
        path = str(Path(path).resolve()) if os.path.exists(path) else path
        full.append(f"{name}={path}" if name else path)
    return ",".join(full)


def _readings(value):
    """Every way to read a value as `name=path,...` with paths that stand."""
    for end in [*(m.span() for m in NEXT.finditer(value)), (len(value), len(value))]:
        name, path = NAMED.fullmatch(value[: end[0]]).groups()
        if _stands(path):
            rest = _readings(value[end[1] :]) if end[1] < len(value) else [[]]
            yield from ([(name, path), *more] for more in rest)


def _stands(path):
    return os.path.exists(path) or bool(HUB_ID.fullmatch(path)) and Path(path).suffix not in FILES
