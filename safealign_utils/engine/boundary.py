"""The boundary: what comes from outside is read here, within bounds, or refused in one message.

A `Refusal` names the parameter or the file, the line where there is one, the value and the fix.
Every reader of the kit runs inside `reading`, so that no failure of a library, however odd, is more
than a refusal. Sizes and depths are held against their bounds before anything is built of them, and
nothing but a regular file is opened: a pipe would hold the process for ever.
"""

import contextlib
import functools
import inspect
import itertools
import json
import os
import re
import stat
from pathlib import Path

SHOWN = 200  # characters of an input that a message repeats
LONGEST = 2000  # characters of a message
DEEPEST = 64  # lists and objects in one another
TEXT = 2**26  # bytes of a file that is read as one JSON value: a record, a notebook, a model's
ROWS = 2**31  # of a file of rows that is one JSON value
LINE = 2**26  # of a line of a file of rows
MOST_FILES = 10_000  # and folders, in a folder of rows
WORD = re.compile(r"\S{201,}")
FORM = re.compile(r"[A-Za-z_]\w*(\[[^\]]*\])?(=|: )|-[-\w]+|grid file |.*(ya?ml|json|ipynb)\b")
STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class Refusal(ValueError):
    """An input that cannot be used: one line that names it, its value and the fix."""

    def __init__(self, message=""):
        super().__init__(brief(message))


class Lost(Refusal):
    """A number that a float cannot hold: it would become 0."""


# ---------------------------------------------------------------- what a message says
def shown(value):
    """A value as a message repeats it, at most SHOWN characters, its middle left out."""
    if isinstance(value, (str, bytes)) and len(value) > SHOWN:
        value = value[:SHOWN] + value[-SHOWN:]  # as long, and short enough to write out
        return _cut(repr(value))
    try:
        return _cut(repr(value))
    except Exception as error:  # an int of 5,000 digits has no text
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def brief(text, lines=False):
    """A message of at most LONGEST characters, words of at most SHOWN, all of them printable, on
    one line unless `lines`."""
    text = str(text)
    text = text if len(text) < 10 * LONGEST else f"{text[: 5 * LONGEST]} {text[-LONGEST:]}"
    text = "".join(c if c.isprintable() or lines and c == "\n" else _escaped(c) for c in text)
    text = WORD.sub(lambda found: _cut(found[0]), text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 605]} ... {text[-600:]}"


def some(words, most=12):
    """Names in a row, `most` of them at most, each as short as a message allows."""
    words = [str(word) for word in words]
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(word if len(word) <= 40 else _cut(word, 40) for word in words[:most]) + more


def reason(error):
    """What an error says, in its first line; its kind where it says nothing."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"no {error.encoding}: {error.reason}, byte {error.start}"
    said = getattr(error, "strerror", None) or str(error).strip()
    said = said if type(error) is not KeyError else f"it lacks {said}"
    return _cut((said.splitlines() or [""])[0]) or type(error).__name__


def _cut(text, most=SHOWN):
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 5]}...{text[-(most * 2 // 5 - 3) :]}"


def _escaped(c):
    return c.encode("unicode_escape").decode("ascii")


# ---------------------------------------------------------------- whatever goes wrong
@contextlib.contextmanager
def reading(what, fix, kind=Refusal):
    """Make every failure of the block a Refusal, of `kind`; one of the kit's own passes as it is.

    `what` names the parameter or the file, `fix` says what to do. Panics of libraries in Rust are
    no Exceptions, so that all is caught but what ends a process.
    """
    try:
        yield
    except Refusal as error:
        if isinstance(error, kind):
            raise
        raise kind(str(error)) from error
    except STOPS:
        raise
    except BaseException as error:
        if type(error) is ValueError and FORM.match(str(error)):  # the kit's own, from below
            raise kind(str(error)) from error
        raise kind(f"{what}: cannot be read ({reason(error)}); {fix}") from error


def reader(name, fix):
    """A decorator of functions that read what a parameter names, their first argument: `reading`.

    `name` may hold other arguments of the function, "{kind}_model".
    """

    def around(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def read(value, *more, **given):
            bound = signature.bind(value, *more, **given)
            with reading(f"{name.format_map(bound.arguments)}={shown(value)}", fix):
                return function(value, *more, **given)

        return read

    return around


# ---------------------------------------------------------------- files
def open_file(file, what="", limit=None):
    """A regular file as a binary stream. Raises Refusal where it is none, or larger than `limit`
    bytes; `what` names it, else its path."""
    what = what or str(file)
    with reading(what, "give a file that can be read"):
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(file, flags)  # which does not wait for the writer of a pipe
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
                raise Refusal(f"{what}: cannot be read (it is {kind}); give a file")
            if limit is not None and found.st_size > limit:
                raise Refusal(f"{what}: {_too_large(found.st_size, limit)}")
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")


def read_bytes(file, what="", limit=TEXT):
    """All of a regular file of at most `limit` bytes. Raises Refusal."""
    with open_file(file, what, limit) as stream, reading(what or str(file), "copy it again"):
        found = stream.read(limit + 1)  # files of /proc say that they hold nothing
    if len(found) > limit:
        raise Refusal(f"{what or file}: {_too_large(len(found), limit)}")
    return found


def read_text(file, what="", limit=TEXT):
    """The same as text in UTF-8."""
    try:
        return read_bytes(file, what, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"cannot be read ({reason(error)}); save it as UTF-8"
        raise Refusal(f"{what or file}: {why}") from error


def read_json(file, what="", limit=TEXT, **options):
    """What a JSON file holds; `options` are those of json.loads. Raises Refusal."""
    return parse_json(read_text(file, what, limit), what or str(file), **options)


def parse_json(text, what, **options):
    """What a JSON text holds, nested at most DEEPEST times. Raises Refusal with the line."""
    try:
        found = json.loads(text, **options)
    except Refusal:
        raise
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        why = getattr(error, "msg", "") or reason(error)
        raise Refusal(f"{what}{line}: not JSON ({why}); write it again") from error
    if is_deep(found):
        raise Refusal(f"{what}: is nested more than {DEEPEST} times; write it flat")
    return found


def number(text):
    """A text of digits as a float. Raises Lost where it is not 0 and would become it."""
    value = float(text)
    if value == 0 and re.search(r"[1-9]", re.split("[eE]", text)[0]):
        raise Lost(f"{shown(text)}: is nearer to 0 than any number here; write 0, or a larger one")
    return value


def is_deep(value, most=DEEPEST):
    """Whether lists and dicts lie in one another more than `most` times."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        inner = (v for one in level for v in (one.values() if isinstance(one, dict) else one))
        level = [v for v in inner if isinstance(v, (dict, list))]
        if not level:
            return False
    return True


def inside(folder, what):
    """All that lies in a folder and below it, links followed, in order. Raises Refusal where that
    is more than a data set has: a home or a root, named by mistake, would be read for hours."""
    walk = os.walk(folder, followlinks=True)
    every = (Path(top) / name for top, *names in walk for name in itertools.chain(*names))
    found = list(itertools.islice(every, MOST_FILES + 1))
    if len(found) > MOST_FILES:
        why = f"is a folder of more than {MOST_FILES:,} files and folders"
        raise Refusal(f"{what}: {why}; name the one that holds the rows alone")
    return sorted(found)


def read_cells(file, what=""):
    """The cells of a notebook: [{cell_type, source (text), metadata (dict), outputs (list)}, ...].
    Raises Refusal for a file that is none."""
    what = what or f"notebook={shown(os.fspath(file))}"
    fix = "save it again in Jupyter"
    with reading(what, fix):
        cells = read_json(file, what)["cells"]
        return [_cell(cell) for cell in cells]


def _cell(cell):
    source, tags = cell["source"], cell.get("metadata", {}).get("tags", [])
    source = source if isinstance(source, str) else "".join(source)
    outputs, metadata = cell.get("outputs", []), cell.get("metadata", {})
    kinds = (cell["cell_type"], str), (metadata, dict), (tags, list), (outputs, list)
    if any(not isinstance(value, kind) for value, kind in kinds):
        raise TypeError("a cell that is none of a notebook")
    return cell | dict(source=source, metadata=metadata, outputs=outputs)


def _too_large(size, limit):
    return f"is too large ({size:,} bytes, at most {limit:,} are read); give a smaller file"


# ---------------------------------------------------------------- variables of the environment
def whole_number(name, usual, *, low, most, fix):
    """The number that a variable of the environment gives, in plain digits; `usual` without one.
    Raises Refusal, which names it."""
    text = os.environ.get(name, "").strip() or str(usual)
    if text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= most:
        return int(text)
    raise Refusal(f"{name}={shown(text)}: a whole number from {low} to {most}; {fix}")
