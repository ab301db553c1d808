"""Do the tests notice when the code is wrong? Plant small faults, one at a time, and count.

    python tests/mutate.py                        a sample of every module below, half an hour on one core
    python tests/mutate.py loss train --each 40 --seconds 300
    python tests/mutate.py --only FILE            the survivors that an earlier run listed, once more

A fault is one change of one expression or statement (`FAULTS`). It is planted in a copy of the project, and the
tests that ran its line, those of the module's nearest files, look at it: the quickest first, until one fails. What
none of them notices has survived, and is listed. The order is that of a fixed shuffle.

Why not mutmut or cosmic-ray: mutmut wraps every function in a dispatcher, and here the body of a function is part of
its key in the cache; cosmic-ray starts a new interpreter for each fault, which imports torch for eight seconds. This
forks from one that has it; where the fault lies in the body of a function, from one that has the package and its tests
too, and gives the function its other code. What the tests computed while they were imported they keep.
"""

import argparse
import ast
import collections
import contextlib
import copy
import functools
import gc
import hashlib
import importlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = "safedpo selective cdpo dog token_controls pair_controls baselines ipo"
NEAREST = {  # module: test files that are nearest to it
    "loss": "test_loss test_train",
    "train": "test_train test_training_faults test_ties engine/test_checkpoint methods/test_label_noise",
    "engine/checkpoint": "test_train test_training_faults engine/test_checkpoint",
    "logprobs": "test_loss test_train test_tokens test_properties engine/test_fast_llama methods/test_dog",
    "tokens": "test_tokens test_loss",
    "evaluate": "test_train test_ties test_pairs test_intervals",
    "world/optimum": "world/test_optimum",
    **{f"methods/{name}": f"methods/test_{name} test_properties" for name in METHODS.split()},
    "methods/token_controls": "methods/test_selective methods/test_baselines",
    "intervals": "test_intervals test_properties",
    "study/claims": "study/test_claims",
    "study/records": "runs/test_runner runs/test_verify study/test_records study/test_whole_runs",
    "runs/verify": "runs/test_verify",
}
NOT_HERE = ("__main__", "safealign", "debugpy", "pydevd", "_pydevd", "ipykernel")
LONGEST = 30  # seconds after which a test is stopped where it is measured, and left out
PATIENCE = 4  # a test that takes so many times its seconds has noticed


# ---------------------------------------------------------------- faults
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
TURNED = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def of_comparison(node):
    for place, operator in enumerate(node.ops):
        other = copy.deepcopy(node)
        other.ops[place] = COMPARISONS[type(operator)]()
        yield other


def of_arithmetic(node):
    if type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)


def of_boolean(node):
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def of_sign(node):
    yield node.operand


def of_number(node):
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 + (value == 0))


def of_call(node):
    """A keyword, or a key's part, that is forgotten."""
    for place in range(len(node.keywords)):
        other = copy.deepcopy(node)
        del other.keywords[place]
        yield other


def of_choice(node):
    yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def of_branch(node):
    """The condition of an `if` turned round, where no other fault does that: `not x`, `a == b`."""
    operator = getattr(node.test, "ops", [None])[0]
    if not isinstance(node.test, ast.UnaryOp) and not isinstance(operator, TURNED):
        yield ast.UnaryOp(ast.Not(), node.test)


def of_statement(node):
    """A statement that is left out."""
    yield ast.Pass()


FAULTS = {
    ast.Compare: of_comparison,
    ast.BinOp: of_arithmetic,
    ast.BoolOp: of_boolean,
    ast.UnaryOp: of_sign,
    ast.Constant: of_number,
    ast.Call: of_call,
    ast.IfExp: of_choice,
    ast.If: of_branch,
    ast.AugAssign: of_statement,
    ast.Expr: of_statement,
    ast.Raise: of_statement,
}


def candidates(tree):
    """(node, the lines of its statement) that can be changed: nothing of annotations, decorators,
    docstrings, messages."""
    left = [(tree, range(0))]
    while left:
        node, lines = left.pop()
        if isinstance(node, ast.stmt):
            body = [part.lineno for name in ("body", "cases") for part in getattr(node, name, ())]
            lines = range(node.lineno, min([node.end_lineno + 1, *body]))
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)) or text:
            continue
        if type(node) in FAULTS:
            yield node, lines
        if isinstance(node, ast.Raise):
            continue
        hidden = {id(getattr(node, name, None)) for name in ("annotation", "returns")}
        hidden |= {id(part) for part in getattr(node, "decorator_list", ())}
        left += [(child, lines) for child in ast.iter_child_nodes(node) if id(child) not in hidden]


def faults(source):
    """[(line, before, after, lines of the statement, the whole source with the fault)]."""
    found, lines = [], source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    for node, statement in candidates(ast.parse(source)):
        place = node.test if isinstance(node, ast.If) else node
        start = starts[place.lineno - 1] + place.col_offset
        end = starts[place.end_lineno - 1] + place.end_col_offset
        whole = source.encode()
        for other in FAULTS[type(node)](node):
            after = ast.unparse(ast.fix_missing_locations(other))
            put = after if isinstance(other, ast.Pass) else f"({after})"
            text = (whole[:start] + put.encode() + whole[end:]).decode()
            before = " ".join(whole[start:end].decode().split())
            after = " ".join(after.split())
            found.append((place.lineno, before, after, statement, text))
    return sorted(found, key=lambda fault: fault[:3])


# ---------------------------------------------------------------- tests
class Watch:
    """A plugin of pytest: the seconds of each test, and the lines that it ran."""

    def __init__(self, measure=None):
        self.measure, self.seconds, self.failed = measure, collections.Counter(), []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if self.measure:
            self.measure.switch_context(item.nodeid)
            signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def pytest_here(tests, *plugins):
    words = ["-q", *([] if plugins else ["-x"]), "--no-header", "-p", "no:cacheprovider", *tests]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main(words, plugins=list(plugins)))


def in_child(work, seconds):
    """The status of work() in a forked process, or None where it takes longer."""
    child = os.fork()
    if not child:
        os.setsid()
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def measured(copied, module, store):
    """What an unchanged module and its tests do: (seconds of each test, the module's lines, the
    missing ones, the tests of each line). A file of tests is measured once, and read from the
    folder `store` until it or one of the modules changes."""
    files = {name: copied / "safealign_utils" / f"{name}.py" for name in NEAREST}
    taken, found = {}, {}
    for tests in nearest(copied, module):
        content = b"".join(path.read_bytes() for path in [copied / tests, *files.values()])
        kept = store / f"{Path(tests).stem}.{hashlib.sha256(content).hexdigest()[:16]}"
        work = functools.partial(measure_file, tests, files, kept)
        if not kept.is_file() and in_child(work, 3600) != 0:
            raise SystemExit(f"{tests} could not be measured")
        seconds, by_module = ast.literal_eval(kept.read_text())
        taken |= seconds
        for line, names in by_module[module].items():
            found.setdefault(line, []).extend(names)
    return taken, lines_of(files[module], found)


def measure_file(tests, files, kept):
    """Run a file of tests, and write its tests' seconds and what they ran of each module."""
    measure = coverage.Coverage(
        data_file=None, config_file=False, include=[str(file) for file in files.values()]
    )
    watch = Watch(measure)
    signal.signal(signal.SIGALRM, out_of_time)
    measure.start()
    for module in files:  # what an import runs is no test's own
        importlib.import_module(f"safealign_utils.{module.replace('/', '.')}")
    pytest_here([tests], watch)
    measure.stop()
    by_module = {}
    for module, file in files.items():
        by_line = measure.get_data().contexts_by_lineno(str(file))
        by_module[module] = {line: [x for x in names if x] for line, names in by_line.items()}
    for test in watch.failed:
        print(f"fails before any fault is planted, and is left out: {test}", flush=True)
    taken = {test: took for test, took in watch.seconds.items() if test not in watch.failed}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(repr((taken, by_module)))
    return 0


def out_of_time(*_):
    raise TimeoutError(f"longer than {LONGEST} s")


def lines_of(file, by_line):
    """How many lines a module has, those that nothing ran, and the tests of each."""
    _, lines, _, _, _ = coverage.Coverage(data_file=None, config_file=False).analysis2(str(file))
    return dict(lines=len(lines), missing=[x for x in lines if x not in by_line], by_line=by_line)


def nearest(copied, module):
    paths = [copied / "tests" / f"{name}.py" for name in NEAREST[module].split()]
    return [str(path.relative_to(copied)) for path in paths if path.is_file()]


def look(file, source, fault, tests, seconds, functions):
    """The status of the tests with a fault: 0 where it has survived, None where they take too long."""
    text = fault[-1]

    def work():
        put(functions, file, text)
        return pytest_here(tests)

    file.write_text(text, encoding="utf-8")
    try:
        compile(text, str(file), "exec")
        return in_child(work, 60 + PATIENCE * sum(seconds[test] for test in tests))
    finally:
        file.write_text(source, encoding="utf-8")


def functions_of(file):
    """The functions and methods of an imported module. What there is now is never collected again:
    a fork that looked at all of it would copy all of it."""
    every = [one for one in gc.get_objects() if type(one) is types.FunctionType]
    gc.freeze()
    return [one for one in every if one.__code__.co_filename == str(file)]


def put(functions, file, text):
    """Give functions of an imported module the code that they have in `text`."""
    left, now = [compile(text, str(file), "exec")], {}
    for code in left:
        inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
        left += [part for part in inner if "<" not in part.co_qualname]
        now[code.co_qualname] = code
    for one in functions:
        one.__code__ = now.get(one.__code__.co_qualname, one.__code__)


def in_a_body(source):
    """The lines in bodies of functions and methods whose name is given once."""
    bodies = collections.defaultdict(list)
    for top in ast.parse(source).body:
        for part in top.body if isinstance(top, ast.ClassDef) else [top]:
            if isinstance(part, ast.FunctionDef):
                lines = range(part.body[0].lineno, part.end_lineno + 1)
                bodies[top.name, part.name].append(lines)
    return {line for found in bodies.values() if len(found) == 1 for line in found[0]}


# ---------------------------------------------------------------- the command
def name_of(fault):
    _, before, after, *_ = fault
    return f"{before[:90]} -> {after[:90]}"


def that_ran(fault, inside, taken, known, slowest):
    """The tests that ran a fault's lines, the quickest first. All of the nearest, where it lies
    outside of the bodies of functions: its line ran when the module was imported."""
    tests = {test for line in fault[3] for test in known["by_line"].get(line, ())}
    tests = tests if fault[0] in inside else taken
    return sorted((x for x in tests if taken.get(x, slowest) < slowest), key=taken.__getitem__)


def of_module(module, copied, store, args, only):
    """Plant faults of a module, and print the survivors: a dict of its counts."""
    file = copied / "safealign_utils" / f"{module}.py"
    source = file.read_text(encoding="utf-8")
    taken, known = measured(copied, module, store)
    every, inside = faults(source), in_a_body(source)
    random.Random(args.seed).shuffle(every)
    if only is not None:
        every = [fault for fault in every if (module, name_of(fault)) in only]
    started = time.monotonic()
    chosen = [
        (fault, that_ran(fault, inside, taken, known, args.slowest)) for fault in every[: args.each]
    ]
    counts = collections.Counter()
    for warm in (True, False):
        some = [one for one in chosen if (one[0][0] in inside) == warm]
        in_child(functools.partial(planted, module, copied, some, taken, args.seconds, warm), 3600)
        counts += ast.literal_eval((copied / "counts").read_text())
    return dict(
        faults=len(every),
        tried=counts["tried"],
        noticed=counts["tried"] - counts["left"],
        late=counts["late"],
        lines=known["lines"],
        run=known["lines"] - len(known["missing"]),
        seconds=time.monotonic() - started,
    )


def planted(module, copied, some, taken, seconds, warm):
    """Plant some faults, each with its tests, and write the counts; `warm`: with the package and
    its tests at hand."""
    file = copied / "safealign_utils" / f"{module}.py"
    source = file.read_text(encoding="utf-8")
    functions, failing = (), ()
    if warm:
        pytest_here(["--collect-only", *nearest(copied, module)])
        functions = functions_of(file)
        failing = control(copied, functions, file, some, taken)
    found, begun = collections.Counter(), time.monotonic()
    for fault, tests in some:
        tests = [test for test in tests if test not in failing]
        if time.monotonic() - begun < seconds:
            status = look(file, source, fault, tests, taken, functions) if tests else 0
            found += {"tried": 1, "left": status == 0, "late": status is None}
            say(module, fault, status, tests)
    (copied / "counts").write_text(repr(dict(found)))
    return 0


def control(copied, functions, file, some, taken):
    """Those of the tests that fail where nothing is planted: what they say of a fault says nothing."""
    tests = {test for _, those in some for test in those}
    failing = copied / "failing"

    def work():
        watch = Watch()
        put(functions, file, file.read_text(encoding="utf-8"))
        pytest_here(sorted(tests, key=taken.__getitem__), watch)
        failing.write_text(repr(watch.failed))
        return 0

    in_child(work, 3600)
    found = ast.literal_eval(failing.read_text())
    for test in found:
        print(f"fails with no fault planted, and is left out: {test}", flush=True)
    return found


def say(module, fault, status, tests):
    if status == 0:
        note = "" if tests else "  # no test runs it"
        print(f"    {module}:{fault[0]}: {name_of(fault)}{note}", flush=True)


def copy_of_project(target):
    """The files that git knows or would know, without what it ignores."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(words, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def as_in_copy(copied):
    """Work in the copy, with what takes long to import at hand and nothing of the package."""
    os.chdir(copied)
    inside = (str(ROOT), str(ROOT / "tests"), "")
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [path for path in others if path not in inside]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(copied), *others])
    sys.dont_write_bytecode = True  # two sources of one size and second would be taken for the same
    sys.path[:] = [str(copied), *(path for path in sys.path if path not in inside)]
    import torch

    torch.set_num_threads(1)
    names = copied / "modules"
    in_child(lambda: names.write_text(" ".join(needed(copied))), 600)
    for name in names.read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    pytest_here(["--collect-only", "tests/test_house.py"])
    assert not [name for name in sys.modules if name.startswith("safealign_utils")]


def needed(copied):
    """The modules of libraries that the package's own import."""
    for file in sorted((copied / "safealign_utils").rglob("*.py")):
        with contextlib.suppress(Exception):
            parts = file.relative_to(copied).with_suffix("").parts
            importlib.import_module(".".join(parts))
    return sorted(name for name in sys.modules if not name.startswith(NOT_HERE))


def listed(file):
    """{(module, fault)} of the survivors in a list that an earlier run printed."""
    pattern = re.compile(r"^ +(\S+):\d+: (.* -> .*?)(?:  #.*)?$")
    return {
        match.groups() for line in file.read_text().splitlines() if (match := pattern.match(line))
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("modules", nargs="*", help=f"of {', '.join(NEAREST)}; default: all")
    add("--each", type=int, default=60, help="faults a module, at most")
    add("--seconds", type=float, default=150.0, help="for a module, at most")
    add("--slowest", type=float, default=60.0, help="seconds that a test may take, to be asked")
    add("--only", type=Path, help="only the survivors that this file lists")
    add("--seed", type=int, default=0, help="of the order in which faults are planted")
    add("--map", type=Path, help="a folder that keeps what the tests run, to measure it once")
    args = parser.parse_args()
    store = args.map and args.map.resolve()
    only = listed(args.only) if args.only else None
    modules = args.modules or list(NEAREST)
    if only is not None:
        modules = [name for name in modules if name in {module for module, _ in only}]
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutate.") as temporary:
        copied = Path(temporary).resolve() / "project"
        copy_of_project(copied)
        as_in_copy(copied)
        for module in modules:
            row = of_module(module, copied, store or copied / "map", args, only)
            share = row["noticed"] / max(1, row["tried"])
            print(
                f"{module:<24} {row['noticed']:>3} of {row['tried']:>3} noticed ({share:.0%}; {row['late']} as they ran too long), of"
                f" {row['faults']:>4} possible; {row['run'] / row['lines']:.0%} of {row['lines']}"
                f" lines run; {row['seconds']:.0f} s",
                flush=True,
            )
            rows.append(row)
    noticed, tried = (sum(row[name] for row in rows) for name in ("noticed", "tried"))
    run, lines = (sum(row[name] for row in rows) for name in ("run", "lines"))
    print(
        f"all: {noticed} of {tried} noticed ({noticed / max(1, tried):.1%}); {run / lines:.1%} of {lines} lines run"
    )


if __name__ == "__main__":
    main()
