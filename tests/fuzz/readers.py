"""Every reader of the kit: how many inputs it gets, and how one of them is made.

A reader takes (rng, folder), writes its damaged input into the folder and returns what reads it.
"""

import contextlib
import io
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import transformers
from helpers import ROOT
from helpers.made_models import SIZES, model_folder, pairs_file, tokenizer
from helpers.toy import CELL, notebook

from fuzz import mutations
from safealign_utils import pairs
from safealign_utils.engine import boundary, cache, distributed, room, torch_setup
from safealign_utils.real import (
    fetched,
    hub,
    judge_files,
    labelled_sets,
    models,
    prompts,
    read_pairs,
    scorer_checkpoints,
    sources,
)
from safealign_utils.runs import cli, folders, plot, report, runner, sweep, verify
from safealign_utils.study import claims, inputs, records
from safealign_utils.study import settings as parameters

SEEDS = SimpleNamespace()  # inputs that are as they should be, made once
BOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
LEDGER = "\n- id: ".join(claims.LEDGER.read_text(encoding="utf-8").split("\n- id: ")[:8])
RECORD = dict(
    schema=1,
    status="complete",
    notebook="02_safedpo",
    run_id="0123456789abcdef",
    parameters=dict(profile="small", seed=0, seeds=1, beta=0.5, dtype="float64", betas=[1.0], data=""),
    metrics={"dpo.unsafe": 0.25, "dpo.reward": 1.5, "safedpo[delta=1].unsafe": 0.1, "data.rows": 12},
    timings=dict(total=61.0, peak_memory_bytes=2**30),
    claims=[
        dict(id="safedpo.unsafe", verdict="holds", value=0.1, low=0.05, high=0.2, n=3),
        dict(id="a[keep=0.2]", verdict="undecided", value=0.1, low=None, high=None, n=1),
    ],
    tables=["methods.csv"],
    figures=["curve.png", "curve.svg"],
    provenance=dict(
        code="c", git="g", python="3", packages={"torch": "2"}, cpu="any", device="cpu", threads=1,
        data_hash="d", reference_hash="r",
    ),
)  # fmt: skip
TABLE = "method,seed,delta,unsafe,reward\n" + "".join(
    f"{m},{s},{d}.0,0.{s}{int(d)},1.5\n"
    for m in ("dpo", "safedpo")
    for s in range(3)
    for d in (0, 5)
)
PROMPTS = [
    {"prompt": "What is bread?", "category": "a", "id": 1, "label": "safe"},
    {"turns": ["Hello there", "And then?"], "question_id": 81, "category": "writing"},
    {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "So?"}]},
    {"Behavior": "b", "ContextString": "c", "BehaviorID": "x1", "SemanticCategory": "s"},
]  # fmt: skip
DIALOGUES = [
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Yes"}],
        "rejected": [{"role": "assistant", "content": "No"}],
    },
]


def prepare(folder):
    """Make the sound inputs, and import and run once what forked processes shall find loaded."""
    folder.mkdir()
    os.environ["SAFEALIGN_CACHE"] = str(folder / "cache")
    SEEDS.pairs = [
        json.loads(line) for line in pairs_file(folder / "p.jsonl", 48).read_text().splitlines()
    ]
    SEEDS.models = [
        model_folder(folder / kind, kind, chat=chat) for kind, chat in (("llama", ""), ("gpt2", ""))
    ]
    SEEDS.scorers = [_scorer_folder(folder / "scorer")]
    SEEDS.tokenizer = tokenizer()
    SEEDS.book = notebook(folder / "toy.ipynb", CELL, "print(1)").read_bytes()
    frame = pd.DataFrame(SEEDS.pairs)
    frame.to_parquet(folder / "p.parquet")
    SEEDS.parquet, SEEDS.csv = (
        (folder / "p.parquet").read_bytes(),
        frame.to_csv(index=False).encode(),
    )
    pd.DataFrame(
        {"method": ["dpo"] * 3, "seed": [0, 1, 2], "delta": [0.0] * 3, "unsafe": [0.1] * 3}
    ).to_parquet(folder / "t.parquet")
    SEEDS.table = (folder / "t.parquet").read_bytes()
    SEEDS.png = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000100000001008060000001ff3ff61")
    read_pairs.load_pairs(str(folder / "p.parquet"))
    models.check_model(str(SEEDS.models[0]))
    for name in ("03_cdpo_dual_gradient_descent", "05_dog_selection"):
        runner.prepare(name)


def _scorer_folder(folder):
    config = transformers.LlamaConfig(**SIZES, num_labels=1, pad_token_id=0, eos_token_id=1)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer(chat="{% for m in messages %}{{ m.content }}{% endfor %}").save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- parameters and YAML
def _cell(rng):
    book = rng.choice(BOOKS)
    return book, parameters.read_cell(book)


def _resolved(book, cell, given, files=()):
    values = parameters.collect(cell, given, files, book.stem)
    settings = parameters.resolve(values, book.stem)
    parameters.check_used(settings, cell, values, given)
    return settings


def words(rng, folder):
    book, cell = _cell(rng)
    odd = [*parameters.FIELDS, *mutations.TEXTS]
    given = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = rng.choice([*cell]) if rng.random() < 0.85 else rng.choice(odd)
        given.append((name, _word(rng, name)))
    return lambda: _resolved(book, cell, given)


def _word(rng, name=""):
    """A text for a parameter: one that may be meant, an odd one, or a damaged one."""
    how = rng.random()
    if how < 0.55:
        return rng.choice(_meant(name))
    if how < 0.85:
        return rng.choice(mutations.TEXTS)
    sound = [b"[0.5, 1.0]", b"safedpo,dpo", b"0.25", b"17", b"true"]
    return mutations.damaged(rng, rng.choice(sound)).decode("utf-8", "replace")


def _meant(name):
    """Texts that a parameter of this name may be given, some of them beyond its range."""
    if name not in parameters.FIELDS:
        return mutations.PLAUSIBLE
    kind, known = parameters.kind(name), parameters._words(name).replace(",", " ").split()
    return {
        "int": "0 1 2 3 10 100 640 10000 10001 10000000 10000001 2000000000 9223372036854775808".split(),
        "float": "0 0.0 0.1 0.5 1 0.999 1e-3 1e-400 1e308 5 1000 -0.5 .5 1.".split(),
        "bool": ["true", "false"],
        "list": ["0.5,1.0", "[0.25]", "[]", *known[2:], ",".join(known[2:5])],
        "str": [*known[2:], *known[-3:]],
    }[kind]


def parameter_file(rng, folder):
    book, cell = _cell(rng)
    text = rng.choice(sorted((ROOT / "notebooks" / "profiles").glob("*.yaml"))).read_text(
        encoding="utf-8"
    )
    mutations.put(rng, folder / "f.yaml", mutations.yaml(rng, text))
    return lambda: _resolved(book, cell, [], [folder / "f.yaml"])


def profile(rng, folder):
    (folder / "profiles").mkdir()
    text = (ROOT / "notebooks" / "profiles" / "small.yaml").read_text(encoding="utf-8")
    mutations.put(rng, folder / "profiles" / "small.yaml", mutations.yaml(rng, text))

    def read():
        before, parameters.NOTEBOOKS = parameters.NOTEBOOKS, folder
        try:
            parameters.profile("small", "02_safedpo")
        finally:
            parameters.NOTEBOOKS = before

    return read


def _grid(rng):
    file = rng.choice(sorted((ROOT / "notebooks" / "sweeps").glob("*.yaml")))
    own = "notebook: 01_dpo_basics\nfixed: {steps: 3}\ncross:\n  beta: [0.5, 1]\n  pairs: [5, 6]\nzip:\n  dtype: [float32]\nseeds: 3\ntable: betas\n"
    return rng.choice([file.read_text(encoding="utf-8"), own])


def grid(rng, folder):
    mutations.put(rng, folder / "g.yaml", mutations.yaml(rng, _grid(rng)))
    given = [(rng.choice(["beta", "steps", "data", ""]), _word(rng))] if rng.random() < 0.2 else []

    def read():
        found = sweep.fix(sweep.read(folder / "g.yaml"), given)
        listed = sweep.runs(found)
        for run in listed[:2]:
            str(run), run.command("out")
            path, _, _ = runner.prepare(run.notebook, run.texts)
            sweep._check_tables(found["table"], path)

    return read


def grid_memory(rng, folder):
    (folder / "g.yaml").write_text(_grid(rng), encoding="utf-8")
    sweep._remember(folder / "g", folder / "g.yaml")
    memory = folder / "g.grid.yaml"
    content = memory.read_bytes()
    memory.unlink()
    mutations.put(rng, memory, mutations.damaged(rng, content))
    return lambda: sweep._grid_of(folder / "g", folder / "g.yaml")


def ledger(rng, folder):
    text = mutations.yaml(rng, LEDGER).decode("utf-8", "surrogateescape")
    return lambda: claims.read(text)


# ---------------------------------------------------------------- notebooks, records, reports
def _book(rng):
    if rng.random() < 0.5:
        book = json.loads(rng.choice([SEEDS.book, BOOKS[1].read_bytes()]))
        return mutations.dumped(rng, mutations.values(rng, book))
    book = json.loads(SEEDS.book)
    source = mutations.damaged(rng, CELL.encode()).decode("utf-8", "replace")
    if rng.random() < 0.2:
        deep = rng.choice(
            [
                "(" * 5000,
                "-" * 60_000,
                "not " * 9000,
                "a" + ".a" * 9000,
                "1" + "+1" * 9000,
                "[" * 300 + "]" * 300,
            ]
        )
        source = f"{CELL}\nbetas: list = {deep}1"
    book["cells"][0]["source"] = source
    return json.dumps(book).encode()


def cell(rng, folder):
    mutations.put(rng, folder / "b.ipynb", _book(rng))

    def read():
        found = parameters.read_cell(folder / "b.ipynb")
        records.run_id(folder / "b.ipynb", {name: value for name, (_, value) in found.items()})
        sweep._check_tables([], folder / "b.ipynb")
        verify.cells(folder / "b.ipynb")

    return read


def executed(rng, folder):
    book = json.loads(SEEDS.book)
    error = dict(output_type="error", ename="ValueError", evalue="no", traceback=[])
    book["cells"][1] |= dict(outputs=[error], execution_count=2)
    content = mutations.dumped(rng, mutations.values(rng, book))
    mutations.put(
        rng,
        folder / "x.failed.ipynb",
        content if rng.random() < 0.7 else mutations.damaged(rng, content),
    )
    return lambda: runner.failure(folder, "x")


def _run(folder, record=None):
    """A folder of a finished run, whose record is not yet there."""
    folder.mkdir(parents=True)
    (folder / "methods.csv").write_text(TABLE)
    (folder / "curve.png").write_bytes(SEEDS.png)
    (folder / "curve.svg").write_text("<svg/>")
    (folder / f"{folder.name}.ipynb").write_bytes(SEEDS.book)
    if record is not None:
        (folder / "record.json").write_text(json.dumps(record))


def _record(rng):
    if rng.random() < 0.8:
        odd = mutations.values(rng, RECORD, times=1)
        return mutations.dumped(rng, odd if rng.random() < 0.8 else RECORD)
    return mutations.damaged(rng, json.dumps(RECORD).encode())


def record(rng, folder):
    _run(folder / "r")
    mutations.put(rng, folder / "r" / "record.json", _record(rng))

    def read():
        found = records.read(folder / "r")
        if found is None:
            raise boundary.Refusal("record.json: counts as absent")
        cli._report(found, folder, True)
        sweep.gather({"r": sweep.Run("02_safedpo", {}, {"delta": 5})}, folder, ("methods",))

    return read


def page(rng, folder):
    """One odd part among sound runs: the report of the others is there."""
    for name in ("02_safedpo", "03_cdpo_dual_gradient_descent"):
        _run(folder / "small" / name, RECORD | dict(notebook=name))
    odd, kind = (
        folder / "small" / "02_safedpo",
        rng.choice(["record", "record", "book", "table", "figure"]),
    )
    file = (
        odd
        / {
            "record": "record.json",
            "book": f"{odd.name}.ipynb",
            "table": "methods.csv",
            "figure": "curve.png",
        }[kind]
    )
    content = _record(rng) if kind == "record" else mutations.damaged(rng, file.read_bytes())
    file.unlink()
    mutations.put(rng, file, content)

    def read():
        shown = report.Report(folder / "small", "pages", folder)
        assert "03_cdpo_dual_gradient_descent" in shown.runs
        for part in ("notes", "contents", "notebooks", "provenance"):
            getattr(shown, part)()

    return read


def reference(rng, folder):
    name = rng.choice(["expected.json", "record.json"])
    source = ROOT / "tests" / "reference" / "small" / "02_safedpo"
    if name == "expected.json":
        shutil.copytree(source, folder / "r")
        content = json.loads((folder / "r" / name).read_text())
        (folder / "r" / name).unlink()
    else:
        _run(folder / "r")
        content = RECORD
    content = mutations.dumped(rng, mutations.values(rng, content))
    content = content if rng.random() < 0.7 else mutations.damaged(rng, content)
    tables = sorted((folder / "r").glob("*.csv"))
    if rng.random() < 0.3:
        (folder / "r" / name).write_bytes(
            json.dumps(RECORD).encode() if name == "record.json" else content
        )
        table = tables[0].read_bytes()
        tables[0].unlink()
        mutations.put(rng, tables[0], mutations.damaged(rng, table))
    else:
        mutations.put(rng, folder / "r" / name, content)

    def read():
        for exact in (True, False):
            found = verify.values(folder / "r", exact=exact, same=exact)
            list(map(str, verify.compare("r", found, found)))

    return read


def manifest(rng, folder):
    kind = rng.choice(["ledger", "manifest"])
    source = {
        "ledger": ROOT / "tests" / "reference" / "ledger.json",
        "manifest": records.COMMITTED / "manifest.json",
    }[kind]
    content = json.loads(source.read_text(encoding="utf-8"))
    content = mutations.dumped(rng, mutations.values(rng, content))
    mutations.put(
        rng,
        folder / "manifest.json",
        content if rng.random() < 0.7 else mutations.damaged(rng, content),
    )
    if kind == "ledger":
        return lambda: list(map(str, verify.compare_ledger(folder / "manifest.json")))
    return lambda: list(map(str, verify.compare_committed(folder)))


# ---------------------------------------------------------------- data and prompts
def _pairs(rng):
    """(ending, content) of a damaged file of pairs."""
    ending = rng.choice([".jsonl", ".jsonl", ".json", ".csv", ".parquet"])
    rows = rng.choice([SEEDS.pairs, SEEDS.pairs, DIALOGUES * 12])
    if rng.random() < 0.7:
        rows = mutations.values(rng, rows, times=1)
        rows = rows if isinstance(rows, list) else [rows]
    content = _written(rows, ending, rng)
    return ending, content if rng.random() < 0.6 else mutations.damaged(rng, content)


def _written(rows, ending, rng):
    if ending in (".csv", ".parquet"):
        try:
            frame, out = pd.DataFrame([row for row in rows if isinstance(row, dict)]), io.BytesIO()
            if ending == ".csv":
                frame.to_csv(out, index=False)
            elif _is_flat(frame):  # writing it takes pyarrow a minute where it is nested deeply
                frame.to_parquet(out)
            else:
                return SEEDS.parquet
            return out.getvalue()
        except Exception:  # such rows no table can hold
            return SEEDS.csv if ending == ".csv" else SEEDS.parquet
    parts = [mutations.dumped(rng, row) for row in rows]
    return b"\n".join(parts) if ending == ".jsonl" else b"[" + b",".join(parts) + b"]"


def _is_flat(frame):
    """Whether no cell can be nested deeply: few brackets."""
    texts = map(str, frame.to_numpy().ravel())
    return all(text.count("[") + text.count("{") < 40 for text in texts)


def _labelled(data):
    table = read_pairs.load_pairs(data, tokenizer=SEEDS.tokenizer)
    with boundary.reading(f"data={data}", "give other pairs"):  # as study.inputs does
        pairs.split_pairs(pairs.label(table, "auto"))


def data(rng, folder):
    ending, content = _pairs(rng)
    file = folder / f"p{rng.choice([ending] * 9 + ['.txt'])}"
    mutations.put(rng, file, content)
    return lambda: _labelled(str(file))


def data_folder(rng, folder):
    (folder / "d").mkdir()
    for name in rng.sample(["train", "test", "other", "README", "a b"], rng.choice([1, 2, 3])):
        ending, content = _pairs(rng)
        file = folder / "d" / f"{name}{ending if name != 'README' else '.md'}"
        mutations.put(rng, file, content)
    if rng.random() < 0.1:
        (folder / "d" / "loop").symlink_to(folder / "d")
    return lambda: _labelled(str(folder / "d"))


def prompt_file(rng, folder):
    ending = rng.choice([".txt", ".csv", ".json", ".jsonl"])
    rows = mutations.values(rng, PROMPTS, times=1) if rng.random() < 0.7 else PROMPTS
    content = _written(
        rows if isinstance(rows, list) else [rows], ending.replace("txt", "json"), rng
    )
    if ending in (".txt", ".csv"):
        content = b'prompt,category,id\nHello,a,1\n"Say, what",b,2\n'
    content = content if rng.random() < 0.5 else mutations.damaged(rng, content)
    mutations.put(rng, folder / f"q{ending}", content)
    name = rng.choice(["", "", "xstest=", "harmbench=", "mt_bench="]) + str(folder / f"q{ending}")
    return lambda: prompts.load_prompts(name, limit=rng.choice([0, 3]), tokenizer=SEEDS.tokenizer)


def labelled(rng, folder):
    ending, content = _pairs(rng)
    mutations.put(rng, folder / f"p{ending}", content)
    return lambda: labelled_sets.from_pairs(
        str(folder / f"p{ending}"), SEEDS.tokenizer, template="dialogue"
    )


def answers(rng, folder):
    rows = [
        dict(id=i, prompt=f"p{i}", turns=("p",), answers=("a",), category="c") for i in range(3)
    ]
    rows = mutations.values(rng, [row | dict(turns=["p"], answers=["a"]) for row in rows])
    form, model = rng.choice([*judge_files.WRITERS]), rng.choice(["m", *mutations.TEXTS])

    def write():
        with boundary.reading("answers", "give a table of `sampling.answer`"):
            table = pd.DataFrame(rows)
        (folder / "out").mkdir()
        judge_files.WRITERS[form](folder / "out", table, model)

    return write


def names(rng, folder):
    there = f"one={folder}/p.jsonl,two={SEEDS.models[0].parent}/p.jsonl"
    sound = rng.choice(["one=a/b, two=c/d@main", there, there])
    value = _word(rng) if rng.random() < 0.4 else mutations.damaged(rng, sound.encode())
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    shutil.copy(SEEDS.models[0].parent / "p.jsonl", folder / "p.jsonl")

    def read():
        sources.sources(value)
        with boundary.reading(f"data={boundary.shown(value)}", "give a path"):
            sources.absolute(value)
            hub.commit(value, "dataset", _word(rng))
            records.content(value, "dataset")
        inputs.check(SETTINGS | dict(data=value))

    return read


SETTINGS = dict(
    data="", model="scratch", revision="", label="auto", pairs=9, template="auto", seed=0
)


# ---------------------------------------------------------------- tables, models, variables, commands
def plotted(rng, folder):
    kind = rng.choice([".csv", ".csv", ".parquet"])
    content = SEEDS.table if kind == ".parquet" else TABLE.encode()
    content = mutations.damaged(rng, content) if rng.random() < 0.6 else content
    mutations.put(rng, folder / f"t{kind}", content)
    asked = dict(x="delta", y="unsafe", hue="method", where=[], only="", out="")
    if rng.random() < 0.5:
        name = rng.choice([*asked])
        odd = rng.choice([*"delta unsafe method seed reward dpo safedpo,dpo".split(), _word(rng)])
        asked[name] = [("seed", odd)] if name == "where" else odd
    if asked["out"]:
        asked["out"] = str(folder / asked["out"].replace("/", "")[:80])
    return lambda: plot.plot(folder / f"t{kind}", **asked)


def _copied(rng, folder, source):
    """A model's folder with one to three files damaged, or of another kind of model."""
    shutil.copytree(source, folder / "m")
    files = sorted(path for path in (folder / "m").iterdir())
    for file in rng.sample(files, rng.choice([1, 1, 2, 3])):
        content = file.read_bytes()
        if file.suffix == ".json" and rng.random() < 0.7:
            content = mutations.dumped(rng, mutations.values(rng, json.loads(content)))
        elif file.suffix == ".safetensors":
            content = mutations.safetensors(rng, content)
        else:
            content = mutations.damaged(rng, content)
        file.unlink()
        if rng.random() < 0.95:
            mutations.put(rng, file, content)
    config = folder / "m" / "config.json"
    if rng.random() < 0.15 and config.is_file() and config.stat().st_size < 2**20:
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            kind = rng.choice(
                [
                    "t5",
                    "bart",
                    "llava",
                    "bert",
                    "whisper",
                    "clip",
                    "mamba",
                    "gemma3",
                    "qwen2_vl",
                    *mutations.TEXTS,
                ]
            )
            config.write_text(json.dumps(json.loads(config.read_text()) | dict(model_type=kind)))
    return str(folder / "m")


def model(rng, folder):
    name = _copied(rng, folder, rng.choice(SEEDS.models))
    return lambda: models.check_model(
        name, template=rng.choice(["auto", "dialogue", "chat"]), max_length=64
    )


def scorer(rng, folder):
    name = _copied(rng, folder, rng.choice(SEEDS.scorers))
    return lambda: scorer_checkpoints.check_scorer(name, kind=rng.choice(["reward", "cost"]))


def fetched_model(rng, folder):
    os.environ["SAFEALIGN_CACHE"] = str(folder)
    of = folder / "models" / "smollm2"
    of.mkdir(parents=True)
    (of / "config.json").write_text("{}")
    origin = dict(
        package="p",
        files={"config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
    )
    content = mutations.dumped(rng, mutations.values(rng, origin))
    mutations.put(
        rng, of / "origin.json", content if rng.random() < 0.7 else mutations.damaged(rng, content)
    )

    def read():
        with boundary.reading("model='smollm2'", "fetch it again"):
            fetched.place("smollm2")

    return read


VARIABLES = "SAFEALIGN_THREADS SAFEALIGN_CACHE_GB SAFEALIGN_CACHE WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE HOME".split()
VARIABLES += [
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ACCELERATE_USE_DEEPSPEED",
    "HF_HUB_OFFLINE",
]


def variables(rng, folder):
    given = {name: _word(rng) for name in rng.sample(VARIABLES, rng.choice([1, 1, 2, 3]))}
    given = {
        name: text.replace("\0", "").encode("utf-8", "replace").decode()
        for name, text in given.items()
    }

    def read():
        os.chdir(folder)
        os.environ.update(given)
        with boundary.reading("the environment", "unset what it names"):
            distributed.check_environment()
            torch_setup.threads()
            room.limit()
        folders.check_cache()
        room.entries(cache.root()) if given.get("SAFEALIGN_CACHE", "/") not in (
            "/",
            "/proc",
        ) else None

    return read


COMMANDS = [
    "run",
    "sweep",
    "plot",
    "report",
    "verify",
    "cache",
    "fetch",
    "notebooks",
    "doctor",
    "--help",
    "",
    "fly",
]


def command(rng, folder):
    (folder / "g.yaml").write_text(_grid(rng), encoding="utf-8")
    (folder / "t.csv").write_text(TABLE)
    own = {
        "sweep": (["g.yaml", "--dry-run"], ["-p", "-p", "--out", "--workers", "--scheduler"]),
        "plot": (
            ["t.csv", "--x", "delta", "--y", "unsafe"],
            ["--hue", "--only", "--where", "--out", "--x", "--y"],
        ),
        "run": (["02_safedpo"], ["-p", "-p", "-p", "-f", "--out"]),
        "report": ([], ["--results", "--profile", "--out"]),
    }
    first = rng.choice([*own] * 4 + COMMANDS)
    words, options = own.get(first, ([], ["-p", "--out", "--debugged"]))
    said = [first, *words]
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        name = rng.choice([*parameters.FIELDS])
        named = f"{name}={_word(rng, name)}"
        said += [rng.choice(options), rng.choice([_word(rng), named, named])]
    if rng.random() < 0.1:
        rng.shuffle(said)
    said = [word.replace("\0", "") for word in said]
    if set(said) & {
        "verify",
        "notebooks",
        "doctor",
        "fetch",
        "--install-completion",
        "--show-completion",
    }:
        said = [*said, "--no-such-option"]  # what they do has no input to damage
    if "sweep" in said and "--dry-run" not in said:
        said.append("--dry-run")

    def read():
        os.chdir(folder)
        before, runner.run = runner.run, _prepared
        try:
            status = cli.main(said)
        finally:
            runner.run = before
        heard = cli.sys.stderr.getvalue()
        lines = [line for line in heard.splitlines() if line.startswith("safealign: ")]
        if "stopped by" in heard or "Traceback" in heard or status not in (0, 1, 2):
            raise AssertionError(f"{said}: status {status}: {heard}")
        if status == 2:
            assert len(lines) == 1, heard
            raise (
                boundary.Refusal(lines[0])
                if len(lines[0]) <= 2011
                else AssertionError(len(lines[0]))
            )

    return read


def _prepared(notebook, given, files, *, out):
    path, settings, id = runner.prepare(notebook, given, files)
    return out, RECORD | dict(notebook=path.stem), False


def array(rng, folder):
    """Odd values where a notebook of the user's own calls the kit: no number of any type stops it."""
    odd = [
        np.float64("nan"),
        np.int64(2**62),
        10**5000,
        object(),
        b"a",
        range(3),
        np.zeros(3),
        pd.NA,
        {1},
        1j,
    ]
    name, found = rng.choice([*parameters.FIELDS]), rng.choice([*odd, mutations.value(rng)])
    sound = {"profile": "small", "seed": 0, "seeds": 1}
    return lambda: parameters.from_notebook(sound | {name: found}, "02_safedpo")


READERS = {
    "values of -p": (5200, words),
    "parameter file": (2200, parameter_file),
    "profile": (800, profile),
    "variables of a notebook": (1000, array),
    "grid": (1800, grid),
    "grid of a folder": (300, grid_memory),
    "ledger": (700, ledger),
    "parameters cell": (1300, cell),
    "failed notebook": (700, executed),
    "record": (2000, record),
    "report": (120, page),
    "reference values": (600, reference),
    "manifest": (300, manifest),
    "pairs": (1600, data),
    "folder of pairs": (200, data_folder),
    "prompts": (1500, prompt_file),
    "answer sets": (150, labelled),
    "answers for judges": (400, answers),
    "names of sources": (700, names),
    "table to plot": (200, plotted),
    "model folder": (500, model),
    "scorer folder": (250, scorer),
    "fetched model": (250, fetched_model),
    "environment": (500, variables),
    "command line": (350, command),
}
