"""How an input is damaged: bytes, values inside JSON, lines of YAML, and what lies where a file should be."""

import copy
import json
import os
import struct

DIGITS = "9" * 100_000
TEXTS = [
    "", " ", "\n", "\t", "\0", "\x1b[2J", "\r\n", "\u202e", "\ufeff", "\u0663", "é" * 300, "a" * 5000, "x" * 200_000,
    "0", "-0", "-1", "1", "00", "010", "+7", "1_000", "1,5", "1:30", "0x10", "0b1", "1e-400", "1e400", "1e999999999",
    "-1e-400", "4.9e-324", "nan", "NaN", "inf", "-inf", ".inf", "1e-3", "2000000000", "9223372036854775808",
    "-9223372036854775809", DIGITS, "0." + DIGITS, "true", "True", "yes", "null", "None", "~", "[]", "{}", "[1,2]",
    "[[[[1]]]]", "[" * 5000, "{\"a\":" * 3000, "[" * 50 + "]" * 50, "2024-02-30", "2024-13-45T99:99:99Z", "2024-01-01",
    "world", "scratch", "kit", "probe", "smollm2", "small", "full", "auto", "chat", "cuda", "owner/name", "a/b@../../c",
    "../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "/", ".", "..", "~", "~root", "file:///etc/passwd",
    "http://127.0.0.1:9/x", "a=b,c=d", "a=b," * 900, "=", ",", "name=", "=path", "*", "[ab]?.jsonl", "%s%n%d", "{0}",
    "{{7*7}}", "$(id)", "`id`", "'", '"', "'; drop", "<script>alert(1)</script>", "\\", "\\u0000", "\\ud800", "--help",
    "-p", "&a", "*a", "&a [*a]", "!!python/object/apply:os.system ['id']", "!!binary aGk=", "<<: {a: 1}", "- - - -",
    "? [a]", "# only a comment", "---\n---", "%YAML 9.9\n---", "| \n text", "> \n", "@", "a: b: c", "{a: 1, a: 2}",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**4299, 0.0, -0.0, 5e-324, 1e308, 1e-5]
NUMBERS += [float("inf"), float("-inf"), float("nan"), 2_000_000_000, 3, 0.5]


PLAUSIBLE = "0 1 2 3 10 100 10000 10000000 10000001 -1 0.5 0.25 1.0 1e-3 5.0e-4 -0.8 float32 auto small [0.5,1.0] [] dpo [dpo] 02_safedpo [1] safe true".split(
    " "
)


def nested(depth, of=0, name=""):
    """`of` inside `depth` lists, or objects with one name."""
    for _ in range(depth):
        of = {name: of} if name else [of]
    return of


def value(rng):
    """An odd value of JSON."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice([None, True, False, [], {}, [None], {"": None}, [[]], [{}]])
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return nested(rng.choice([3, 30, 70, 400, 900]), name=rng.choice(["", "a"]))
    if kind == 3:
        return [rng.choice(NUMBERS) for _ in range(rng.choice([1, 3, 2000]))]
    if kind == 4:
        return {rng.choice(TEXTS)[:50]: rng.choice(TEXTS)[:50] for _ in range(3)}
    return rng.choice(TEXTS)


def values(rng, of, times=None):
    """A copy of a JSON value with one to four places replaced, removed, renamed or doubled."""
    out = copy.deepcopy(of)
    for _ in range(times or rng.choice([1, 1, 1, 2, 4])):
        places = list(_places(out))
        if not places or rng.random() < 0.03:
            return value(rng)
        inside, key = rng.choice(places)
        how = rng.randrange(6)
        if how < 3:
            inside[key] = value(rng)
        elif how == 3:
            del inside[key]
        elif how == 4 and isinstance(inside, dict):
            inside[rng.choice(TEXTS)[:300]] = inside.pop(key)
        else:
            other, name = rng.choice(places)
            doubled = other.get(name) if isinstance(other, dict) else None
            inside[key] = json.loads(json.dumps(doubled))  # of what deepcopy is too deep for
    return out


def _places(of, depth=0):
    if depth > 6:
        return
    keys = of.keys() if isinstance(of, dict) else range(len(of)) if isinstance(of, list) else ()
    for key in list(keys)[:200]:
        yield of, key
        yield from _places(of[key], depth + 1)


def dumped(rng, of):
    """A value as JSON."""
    return json.dumps(of, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")


def damaged(rng, content):
    """Bytes with one to three kinds of damage."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        content = rng.choice(DAMAGE)(rng, bytes(content))
    return content


def _flipped(rng, b):
    b = bytearray(b or b"x")
    for _ in range(rng.choice([1, 3, 30])):
        b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    return bytes(b)


def _cut(rng, b):
    return b[: rng.randrange(len(b) + 1)]


def _without(rng, b):
    at = rng.randrange(len(b) + 1)
    return b[:at] + b[at + rng.randrange(1, 60) :]


def _doubled(rng, b):
    at = rng.randrange(len(b) + 1)
    part = b[at : at + rng.randrange(1, 400)]
    return b[:at] + part * rng.choice([2, 2, 50]) + b[at:]


def _with_text(rng, b):
    at = rng.randrange(len(b) + 1)
    return b[:at] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + b[at:]


def _with_bytes(rng, b):
    at = rng.randrange(len(b) + 1)
    odd = [b"\0" * 40, b"\xff\xfe", rng.randbytes(30), b"\xed\xa0\x80", b"\xc3", b"\x1a\x04"]
    return b[:at] + rng.choice(odd) + b[at:]


def _recoded(rng, b):
    text = b.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-7"]), "replace")


def _lines(rng, b):
    lines = b.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif how == 1:
        lines.insert(one, lines[other])
    elif how == 2:
        lines[one] = b" " * rng.randrange(5) + lines[one]
    else:
        del lines[one]
    return b"\n".join(lines)


def _other(rng, b):
    whole = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"0",
        b'"a"',
        b"[null]",
        b"\0" * 4096,
        b"PK\x03\x04",
        b"\x89PNG",
    ]
    whole += [b"[" * 100_000, b'{"a":' * 50_000, b"1" * 100_000, b"PAR1" + b"\0" * 64 + b"PAR1"]
    return rng.choice(whole)


DAMAGE = [
    _flipped,
    _cut,
    _without,
    _doubled,
    _with_text,
    _with_text,
    _with_bytes,
    _recoded,
    _lines,
    _lines,
    _other,
]


def yaml(rng, text):
    """YAML with values replaced, plausible ones or odd, names doubled or renamed, or other damage."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice([n for n, line in enumerate(lines) if ": " in line] or [0])
        name, colon, _ = lines[at].partition(": ")
        how = rng.randrange(10)
        if how < 8:
            lines[at] = f"{name}: {rng.choice(PLAUSIBLE if how < 5 else TEXTS)}"
        elif how == 8:
            lines.insert(at, lines[rng.randrange(len(lines))])
        else:
            lines[at] = f"{rng.choice(TEXTS)[:60]}: {rng.choice(TEXTS)}"
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damaged(rng, content) if rng.random() < 0.2 else content


def safetensors(rng, content):
    """A file of weights whose header says other things than it holds, or damaged anywhere."""
    if rng.random() < 0.5:
        return damaged(rng, content)
    size = struct.unpack("<Q", content[:8])[0]
    header = values(rng, json.loads(content[8 : 8 + size]))
    text = dumped(rng, header)
    said = rng.choice([len(text), len(text), 0, 2**63, 2**32, len(text) + 7])
    return struct.pack("<Q", said) + text + content[8 + size :]


def put(rng, file, content):
    """Write a file; now and then something else lies in its place."""
    if rng.random() > 0.04:
        file.write_bytes(content)
        return
    how = rng.randrange(6)
    if how == 0:
        file.mkdir()
    elif how == 1:
        os.mkfifo(file)
    elif how == 2:
        file.symlink_to(file.with_name("nowhere"))
    elif how == 3:
        file.symlink_to(file)
    elif how == 4:
        file.symlink_to(
            rng.choice(["/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/environ"])
        )
    else:
        file.write_bytes(content)
        os.truncate(file, rng.choice([2**33, 2**40]))
