"""The boundary: bounded files, bounded messages, and no failure that is more than a refusal."""

import os

import pytest

from safealign_utils.engine import boundary, distributed, room, torch_setup
from safealign_utils.engine.boundary import Refusal


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


@pytest.mark.parametrize(
    "error, words",
    [
        (KeyError("rule"), "it lacks 'rule'"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (MemoryError(), "it needs more memory than there is"),
        (Panic("index out of bounds"), "index out of bounds"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"), "invalid start byte"),
        (OverflowError(), "OverflowError"),
        (ValueError("one\ntwo"), "one"),
    ],
)
def test_any_failure_is_a_refusal_that_names_the_input(error, words):
    with pytest.raises(Refusal) as refused:
        with boundary.reading("data=p.jsonl", "give another file"):
            raise error
    assert str(refused.value).startswith("data=p.jsonl: cannot be read (")
    assert words in str(refused.value) and str(refused.value).endswith("; give another file")
    assert refused.value.__cause__ is error, "--debug shows where"


@pytest.mark.parametrize("words", ["beta='x': must be a number", "--out x: cannot be written"])
def test_a_message_of_the_kits_own_passes_as_it_is(words):
    for error in (Refusal(words), ValueError(words)):
        with pytest.raises(Refusal) as refused:
            with boundary.reading("data=p.jsonl", "give another file"):
                raise error
        assert str(refused.value) == words


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_passes(stop):
    with pytest.raises(stop):
        with boundary.reading("data=p.jsonl", "give another file"):
            raise stop


def test_messages_are_short_printable_and_of_one_line():
    message = str(Refusal("a=b\nc\0\x1b[2J\u202e\ud800 " + "x" * 10**6 + " word" * 10**5 + " end"))
    assert len(message) <= boundary.LONGEST and message.isprintable() and message.endswith(" end")
    assert max(map(len, message.split())) <= boundary.SHOWN
    assert message.startswith("a=b\\nc\\x00\\x1b[2J\\u202e\\ud800 xxx")
    assert boundary.brief("one\ntwo", lines=True) == "one\ntwo"


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), b"y" * 10**6, {1: "z" * 999}])
def test_a_value_is_shown_by_its_ends(value):
    shown = boundary.shown(value)
    assert len(shown) == boundary.SHOWN and "..." in shown and shown[0] == repr(value)[0]


def test_a_number_without_a_text_is_shown_by_its_kind():
    assert boundary.shown(10**5000) == "<int without a text: ValueError>"
    assert boundary.shown("short") == "'short'"


# ---------------------------------------------------------------- files


@pytest.fixture
def odd(tmp_path):
    """What may lie where a file should be."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2**40)
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    (tmp_path / "null").write_text("null")
    (tmp_path / "deep").write_text("[" * 100 + "]" * 100)
    (tmp_path / "deeper").write_text("[" * 10**6)
    (tmp_path / "digits").write_text("9" * 10**5)
    return tmp_path


@pytest.mark.parametrize(
    "name, words",
    [
        ("folder", "it is a folder"),
        ("pipe", "it is a pipe or a device"),
        ("loop", "Too many levels of symbolic links"),
        ("dangling", "No such file"),
        ("device", "it is a pipe or a device"),
        ("sparse", "is too large (1,099,511,627,776 bytes, at most 67,108,864 are read)"),
        ("latin", "invalid continuation byte, byte 3|unexpected end of data, byte 3"),
        ("deep", "nested more than 64 times"),
        ("deeper", "nested too deeply"),
        ("digits", "line 1|Exceeds the limit"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_what_is_no_file_of_json_is_refused_at_once(odd, name, words):
    with pytest.raises(Refusal) as refused:
        boundary.read_json(f"{odd}/{name}", f"record={name[:9]}")
    assert any(word in str(refused.value) for word in words.split("|")), refused.value
    assert str(refused.value).startswith(f"record={boundary.brief(name[:9])}")


def test_what_is_a_file_is_read(odd):
    assert boundary.read_json(odd / "null") is None
    (odd / "flat").write_text("[" * 60 + "]" * 60)
    assert boundary.is_deep(boundary.read_json(odd / "flat"), most=59)
    (odd / "link").symlink_to(odd / "null")
    assert boundary.read_text(odd / "link") == "null"


@pytest.mark.parametrize("text", ["1e-400", "-0.0001e-330", "0." + "0" * 400 + "1"])
def test_a_number_that_would_become_0_is_lost(text):
    with pytest.raises(boundary.Lost, match="nearer to 0 than any number here; write 0"):
        boundary.number(text)
    assert boundary.number("0e-400") == 0 == boundary.number("-0.000")
    assert boundary.number("5e-324") > 0


@pytest.mark.parametrize(
    "book",
    [
        "null",
        "[]",
        '{"cells": null}',
        '{"cells": [1]}',
        '{"cells": [{"cell_type": 1, "source": ""}]}',
        '{"cells": [{"cell_type": "code", "source": [1]}]}',
        '{"cells": [{"cell_type": "code", "source": "", "metadata": []}]}',
        '{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": "parameters"}}]}',
        '{"cells": [{"cell_type": "code", "source": "", "outputs": {}}]}',
    ],
)
def test_a_file_that_is_no_notebook(tmp_path, book):
    (tmp_path / "b.ipynb").write_text(book)
    with pytest.raises(Refusal, match="^notebook='.*b.ipynb': cannot be read .*Jupyter"):
        boundary.read_cells(tmp_path / "b.ipynb")


# ---------------------------------------------------------------- variables of the environment


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.5", "٣", "1025", "9" * 5000, "1e3", "0x2"])
def test_threads_are_a_whole_number(monkeypatch, text):
    monkeypatch.setenv("SAFEALIGN_THREADS", text)
    with pytest.raises(Refusal, match="^SAFEALIGN_THREADS='.*': a whole number from 1 to 1024"):
        torch_setup.threads()
    monkeypatch.setenv("WORLD_SIZE", text if text != "1025" else "x")
    with pytest.raises(Refusal, match="^WORLD_SIZE='"):
        distributed.count()


@pytest.mark.parametrize("text", ["1e308", "1e400", "1e7", "nan", "-1", "x" * 5000])
def test_a_cache_of_any_size_is_none(monkeypatch, text):
    monkeypatch.setenv("SAFEALIGN_CACHE_GB", text)
    with pytest.raises(Refusal, match="^SAFEALIGN_CACHE_GB='.*': a number of GB above 0"):
        room.limit()
