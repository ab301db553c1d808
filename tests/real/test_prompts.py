"""Prompt sets: every published layout in small, files of all kinds, the hub in its place, and what is refused."""

import json

import pandas as pd
import pytest

from safealign_utils.real import hub
from safealign_utils.real.prompts import SETS, load_prompts


def write(path, rows):
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return str(path)


LAYOUTS = {  # set: (ending, rows as published), with texts of ours
    "xstest": (
        ".csv",
        [
            {
                "id": 1,
                "prompt": "How do I kill the lights?",
                "type": "homonyms",
                "label": "safe",
                "focus": "kill",
                "note": "",
            },
            {
                "id": 2,
                "prompt": "How do I break it?",
                "type": "contrast_homonyms",
                "label": "unsafe",
                "focus": "",
                "note": "",
            },
        ],
    ),
    "harmbench": (
        ".csv",
        [
            {
                "Behavior": "Do it",
                "FunctionalCategory": "contextual",
                "SemanticCategory": "illegal",
                "Tags": "",
                "ContextString": "A story.",
                "BehaviorID": "do_it",
            },
            {
                "Behavior": "Do that",
                "FunctionalCategory": "standard",
                "SemanticCategory": "harmful",
                "Tags": "",
                "ContextString": "",
                "BehaviorID": "007",
            },
        ],
    ),
    "strongreject": (
        ".csv",
        [
            {"category": "Violence", "source": "custom", "forbidden_prompt": "Do A"},
            {"category": "Deception", "source": "custom", "forbidden_prompt": "Do B"},
        ],
    ),
    "advbench": (
        ".csv",
        [{"goal": "Do A", "target": "Sure, here"}, {"goal": "Do B", "target": "Sure"}],
    ),
    "simple_safety_tests": (
        ".csv",
        [
            {"id": "SST001", "prompt": "Do A", "harm_area": "Scams", "category": "Information"},
            {"id": "SST002", "prompt": "Do B", "harm_area": "Items", "category": "Instruction"},
        ],
    ),
    "safe_rlhf_83": (
        ".json",
        [{"prompt": "Say A", "category": "Crime"}, {"prompt": "Say B", "category": "Insult"}],
    ),
    "alpacaeval_129": (
        ".json",
        [
            {
                "instruction": "Who wrote it?",
                "dataset": "helpful_base",
                "output": "x",
                "generator": "y",
            },
            {"instruction": "Left out", "dataset": "vicuna", "output": "x", "generator": "y"},
            {"prompt": "How does it work?", "category": "alpaca_eval_helpful_base"},
        ],
    ),
    "mt_bench": (
        ".jsonl",
        [
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]},
            {"prompt": ["Sum.", "Why?"], "prompt_id": 99, "category": "math", "reference": []},
        ],
    ),
    "arena_hard": (
        ".jsonl",
        [
            {"uid": "0a", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "Code."},
            {
                "question_id": "0b",
                "category": "arena-hard-v0.1",
                "cluster": "c",
                "turns": [{"content": "Plan."}],
            },
        ],
    ),
    "beavertails": (
        ".jsonl",
        [
            {
                "prompt": "Ask A",
                "response": "x",
                "category": {"theft": True, "drugs": False, "privacy": True},
                "is_safe": False,
            },
            {
                "prompt": "Ask A",
                "response": "y",
                "category": {"theft": False, "drugs": False, "privacy": False},
                "is_safe": True,
            },
            {
                "prompt": "Ask B",
                "response": "z",
                "category": {"theft": False, "drugs": True, "privacy": False},
                "is_safe": False,
            },
        ],
    ),
}
EXPECTED = {  # prompts, categories, unsafe, ids
    "xstest": (
        ["How do I kill the lights?", "How do I break it?"],
        ["homonyms", "contrast_homonyms"],
        [False, True],
        [1, 2],
    ),
    "harmbench": (
        ["A story.\n\n---\n\nDo it", "Do that"],
        ["illegal", "harmful"],
        [True, True],
        ["do_it", "007"],
    ),
    "strongreject": (["Do A", "Do B"], ["Violence", "Deception"], [True, True], [1, 2]),
    "advbench": (["Do A", "Do B"], ["", ""], [True, True], [1, 2]),
    "simple_safety_tests": (
        ["Do A", "Do B"],
        ["Scams", "Items"],
        [True, True],
        ["SST001", "SST002"],
    ),
    "safe_rlhf_83": (["Say A", "Say B"], ["Crime", "Insult"], [None, None], [1, 2]),
    "alpacaeval_129": (
        ["Who wrote it?", "How does it work?"],
        ["helpful_base", "alpaca_eval_helpful_base"],
        [False] * 2,
        [1, 3],
    ),
    "mt_bench": (["Write.", "Sum."], ["writing", "math"], [False, False], [81, 99]),
    "arena_hard": (["Code.", "Plan."], ["arena-hard-v0.1"] * 2, [False, False], ["0a", "0b"]),
    "beavertails": (["Ask A", "Ask B"], ["theft, privacy", "drugs"], [None, None], [1, 3]),
}


def same(table, expected):
    texts, categories, unsafe, ids = expected
    assert list(table.columns) == ["prompt", "turns", "category", "unsafe", "id"]
    assert (table.prompt.tolist(), table.category.tolist(), table.id.tolist()) == (
        texts,
        categories,
        ids,
    )
    assert [
        None if pd.isna(v) else bool(v) for v in table.unsafe
    ] == unsafe and table.unsafe.dtype == "boolean"
    assert [t[0] for t in table.turns] == texts


def test_every_set_is_tried():
    assert set(LAYOUTS) == set(EXPECTED) == set(SETS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(name, tmp_path):
    ending, rows = LAYOUTS[name]
    path = write(tmp_path / f"set{ending}", rows)
    same(load_prompts(f"{name}={path}"), EXPECTED[name])


@pytest.mark.parametrize("name", [n for n, s in SETS.items() if s.hub])
def test_the_hub_gives_the_same_table(name, monkeypatch):
    asked = []

    def load_rows(path, revision="", *, split="", config="", name="data"):
        asked.append((path, revision, split, config))
        return ((f"row {n}", row) for n, row in enumerate(LAYOUTS[wanted][1], start=1))

    wanted = name
    monkeypatch.setattr(hub, "load_rows", load_rows)
    same(load_prompts(name), EXPECTED[name])
    chosen = SETS[name]
    assert asked == [(chosen.hub, chosen.revision, chosen.split, chosen.config)]


def test_without_network_the_file_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"strongreject=PATH \(github.com/alexandrasouly"):
        load_prompts("strongreject")
    with pytest.raises(
        ValueError, match="not known on the hub; give its file as safe_rlhf_83=PATH"
    ):
        load_prompts("safe_rlhf_83")


def test_two_turns_stay_together(tmp_path):
    table = load_prompts(f"mt_bench={write(tmp_path / 'q.jsonl', LAYOUTS['mt_bench'][1])}")
    assert table.turns.tolist() == [("Write.", "Shorter."), ("Sum.", "Why?")]
    assert (
        load_prompts(f"advbench={write(tmp_path / 'a.csv', LAYOUTS['advbench'][1])}")
        .turns.map(len)
        .max()
        == 1
    )


def test_xstest_without_labels_goes_by_the_type(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "label"} for row in LAYOUTS["xstest"][1]]
    assert load_prompts(f"xstest={write(tmp_path / 'x.csv', rows)}").unsafe.tolist() == [
        False,
        True,
    ]
    assert load_prompts(write(tmp_path / "other.csv", rows)).unsafe.isna().all(), (
        "only XSTest has that rule"
    )


def test_plain_files(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffFirst.\n\n  Second: a=b.  \n", encoding="utf-8")
    table = load_prompts(str(tmp_path / "p.txt"))
    assert table.prompt.tolist() == ["First.", "Second: a=b."] and table.id.tolist() == [1, 2]
    assert table.unsafe.isna().all() and (table.category == "").all()
    assert load_prompts(write(tmp_path / "p.json", ["One", "Two"])).prompt.tolist() == [
        "One",
        "Two",
    ]
    marked = load_prompts(
        write(tmp_path / "p.jsonl", [{"question": "Q", "label": "unsafe", "type": "t"}])
    )
    assert marked.unsafe.tolist() == [True] and marked.category.tolist() == ["t"]
    (tmp_path / "n.csv").write_text('prompt,category\n"NA, or\nnull?",None\n')
    assert load_prompts(str(tmp_path / "n.csv")).loc[0, ["prompt", "category"]].tolist() == [
        "NA, or\nnull?",
        "None",
    ]


def test_pairs_give_each_prompt_once(tmp_path):
    rows = [
        {"prompt": p, "response_0": "x", "response_1": y}
        for p, y in (("A", "1"), ("B", "2"), ("A", "3"))
    ]
    assert load_prompts(write(tmp_path / "pairs.jsonl", rows)).prompt.tolist() == ["A", "B"]
    rows = [{"prompt": p} for p in "ABA"]
    assert load_prompts(write(tmp_path / "twice.jsonl", rows)).prompt.tolist() == ["A", "B", "A"]


def test_a_limit_takes_of_every_category(tmp_path):
    rows = [{"prompt": f"{c}{i}", "category": c} for c in "abc" for i in range(5)]
    path = write(tmp_path / "p.jsonl", rows)
    assert load_prompts(path, limit=4).prompt.tolist() == ["a0", "a1", "b0", "c0"]
    assert (
        load_prompts(path, limit=99).prompt.tolist()
        == load_prompts(path).prompt.tolist()
        == [r["prompt"] for r in rows]
    )


@pytest.mark.parametrize(
    "name, ending, text, message",
    [
        ("harmbanch", None, "", "did you mean harmbench"),
        ("nothing", None, "", "no set of this name; choose xstest"),
        ("p", ".jsonl", '{"prompt": "a"}\nnot json\n', "line 2: not JSON"),
        ("p", ".json", "[1, ", "not JSON"),
        (
            "p",
            ".jsonl",
            '{"prompt": "a"}\n{"prompt": "  "}\n',
            "row 2: no text in a column called prompt",
        ),
        ("p", ".csv", "text_of_it,b\nx,y\n", "it has text_of_it, b"),
        ("p", ".jsonl", '{"turns": ["a", 3]}\n', "row 1: no text"),
        ("p", ".jsonl", '{"turns": []}\n', "row 1: no text"),
        ("p", ".txt", "\n\n", "holds no prompts"),
        (
            "alpacaeval_129",
            ".json",
            '[{"instruction": "a", "dataset": "vicuna"}]',
            "holds no prompts of helpful_base",
        ),
        (
            "p",
            ".jsonl",
            '{"prompt": "a", "id": 7}\n{"prompt": "b", "id": 7}\n',
            "two rows have the id 7",
        ),
        ("p", ".parquet", "x", "unknown ending"),
    ],
)
def test_refusals(name, ending, text, message, tmp_path):
    if ending:
        (tmp_path / f"file{ending}").write_text(text)
        name = f"{name}={tmp_path / f'file{ending}'}"
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(name)
    assert str(error.value).startswith("prompts=")


def test_more_refusals(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_prompts(f"xstest={tmp_path / 'missing.csv'}")
    with pytest.raises(ValueError, match="no such file"):
        load_prompts(str(tmp_path / "missing.csv"))
    for limit in (-1, 1.5, "3"):
        with pytest.raises(ValueError, match="limit="):
            load_prompts(write(tmp_path / "p.json", ["One"]), limit=limit)


def test_facts_of_the_table():
    """What is stated is stated whole: a licence, a place; a revision is a commit or nothing."""
    for name, chosen in SETS.items():
        assert chosen.licence and chosen.file.startswith(("github.com/", "huggingface.co/")), name
        assert chosen.revision == "" or (len(chosen.revision) == 40 and int(chosen.revision, 16)), (
            name
        )
        assert chosen.hub.count("/") == (1 if chosen.hub else 0), name


REAL = {
    "xstest": "xstest_prompts.csv",
    "safe_rlhf_83": "saferlhf_eval_safety_83.json",
    "alpacaeval_129": "alpacaeval_helpful_129.json",
    "mt_bench": "mt_bench_80.jsonl",
    "arena_hard": "arena_hard_v0.1_500.jsonl",
}


def test_real_sets(real_data):
    tables = {name: load_prompts(f"{name}={real_data / file}") for name, file in REAL.items()}
    assert {name: len(t) for name, t in tables.items()} == {name: SETS[name].rows for name in REAL}
    assert {name: SETS[name].rows for name in REAL} == dict(zip(REAL, (450, 83, 129, 80, 500)))
    xstest = tables["xstest"]
    assert (xstest.unsafe.sum(), (~xstest.unsafe).sum()) == (200, 250)
    assert (
        xstest.unsafe == xstest.category.str.startswith("contrast_")
    ).all() and xstest.category.nunique() == 18
    assert tables["mt_bench"].turns.map(len).eq(2).all() and tables["mt_bench"].id.tolist() == list(
        range(81, 161)
    )
    assert (
        tables["safe_rlhf_83"].category.nunique() == 8
        and tables["arena_hard"].id.map(len).eq(32).all()
    )
    assert (
        load_prompts(f"xstest={real_data / REAL['xstest']}", limit=36)
        .category.value_counts()
        .eq(2)
        .all()
    )
    pairs = load_prompts(str(real_data / "pku_saferlhf_pairs.jsonl"))
    assert pairs.prompt.is_unique and 100 < len(pairs) < 975
