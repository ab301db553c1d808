"""Exercises: right answers of the solutions pass in every form, wrong and broken ones are told what is wrong."""

import inspect
import json
import re

import numpy as np
import pytest
import torch
from helpers import ROOT, exercise_answers

from safealign_utils.study import exercises

NAMES = list(exercises.EXERCISES)
STUBS = exercise_answers.stubs()
RIGHT = exercise_answers.solutions()
WRONG = [(name, source) for name, given in exercise_answers.WRONG.items() for source in given]
SLIPS = [(name, words) for name in NAMES for words in exercises.EXERCISES[name].slips]


def said(name, function):
    """What a check prints, and that it is no more than three lines."""
    text = exercises.EXERCISES[name].verdict(function)
    assert len(text.splitlines()) <= 2 and "Traceback" not in text
    return text


def test_every_exercise_has_a_stub_a_solution_three_hints_and_wrong_answers():
    assert set(STUBS) == set(RIGHT) == set(NAMES) == set(exercise_answers.WRONG)
    for name in NAMES:
        exercise = exercises.EXERCISES[name]
        assert exercise is getattr(exercises, name) and len(set(exercise.hints)) == 3
        assert len(exercise_answers.WRONG[name]) >= 3 and len(exercise.slips) >= 5
        arguments = list(inspect.signature(RIGHT[name]).parameters)
        assert arguments == exercise.arguments.split(), "named as in the notebook"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("0*.ipynb")), ids=lambda p: p.stem
)
def test_an_unanswered_exercise_prints_what_is_committed(path, capsys):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if re.search(r"^exercises\.\w+\(my_\w+\)$", source, re.M):
            exec("from safealign_utils.study import exercises\n" + source, {})
            committed = "".join("".join(o["text"]) for o in cell["outputs"])
            assert capsys.readouterr().out == committed and "not answered yet" in committed


# ---------------------------------------------------------------- right answers
def forms_of(value):
    """An answer as array, list, tensor, float32 tensor."""
    if isinstance(value, tuple):
        return zip(*map(forms_of, value))
    array = np.asarray(value, dtype=float)
    tensor = torch.from_numpy(array.copy())
    return array, array.tolist(), tensor, tensor.float().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right_in_every_form(name):
    assert said(name, RIGHT[name]).endswith(": correct")
    if name == "transform":
        return
    for form in range(4):
        answer = lambda *given, form=form: list(forms_of(RIGHT[name](*given)))[form]
        assert said(name, answer).endswith(": correct")


def test_a_function_of_torch_gets_tensors():
    def my_loss(h, beta):
        return torch.nn.functional.softplus(-beta * h)

    def by_method(h, beta):
        return h.mul(-beta).exp().log1p()

    def two_mistakes(h, beta):
        return torch.softplus(h)

    assert said("loss", my_loss).endswith(": correct")
    assert said("loss", by_method).endswith(": correct")
    assert "raises AttributeError: module 'torch' has no" in said("loss", two_mistakes)


def test_an_answer_does_not_change_the_cases():
    def in_place(logp_ref, reward, cost, beta):
        reward[cost > 0] = -np.inf
        logp_ref += reward / beta
        return np.exp(logp_ref) / np.exp(logp_ref).sum(axis=1, keepdims=True)

    for _ in range(2):
        assert said("safe_optimum", in_place).endswith(": correct")


# ---------------------------------------------------------------- wrong answers
@pytest.mark.parametrize("name, source", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, source):
    text = said(name, exercise_answers.function_of(source, STUBS[name]))
    assert exercise_answers.WRONG[name][source] in text, text
    assert "correct" not in text
    if "wanted 2 arrays" not in text:
        assert re.search(r"got .*, wanted ", text) and "At " in text
        assert f'exercises.hint("{name}", 2)' in text


@pytest.mark.parametrize("name, words", SLIPS)
def test_every_slip_is_wrong_and_is_named(name, words):
    """The cases tell each typical mistake from the right answer, and from the other mistakes."""
    text = said(name, exercises.EXERCISES[name].slips[words])
    assert ": not right yet. " in text and words in text, text


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_answer_is_refused_in_a_line_or_two(name):
    (wrong_type, refused), (raises, error) = exercise_answers.broken(name, STUBS[name]).items()
    text = said(name, exercise_answers.function_of(wrong_type, STUBS[name]))
    assert refused in text and "got " in text and len(text.splitlines()) == 1
    text = said(name, exercise_answers.function_of(raises, STUBS[name]))
    assert error in text and "At " in text
    assert "give the function itself" in said(name, 0.5)
    assert "does it end in `return`?" in said(
        name, lambda *given: sum(map(np.size, given), 0) and None
    )
    fewer = said(name, lambda: 0.0)
    assert "raises TypeError" in fewer
    assert said(name, lambda *given: None).startswith(
        exercises.EXERCISES[name].words + ": not answered"
    )


class Odd:
    """An object whose conversion to an array fails."""

    def __array__(self, *given, **options):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "answer",
    [{}, "0.5", [[1.0], [2.0, 3.0]], [None, 1.0], Odd(), 1j, iter([1.0]), [["a"]], object()],
)
def test_what_is_no_number_is_refused_in_one_line(answer):
    text = said("loss", lambda h, beta: answer)
    assert "wanted numbers of shape (4,), got " in text and len(text.splitlines()) == 1


ODD = [
    None,
    True,
    0,
    float("inf"),
    10**400,
    "",
    "keep",
    b"x",
    [],
    (),
    {},
    {1},
    [[]],
    [1, [2]],
    (1.0, None),
    range(4),
    len,
    type,
    np.zeros(0),
    np.zeros((3, 7)),
    np.full((3, 7), np.nan),
    np.zeros((4, 1)),
    np.array(["a"]),
    np.array([1j]),
    torch.zeros(4, dtype=torch.bfloat16),
    torch.eye(3).to_sparse(),
    torch.zeros(4, dtype=torch.complex64),
    [torch.zeros(3), torch.zeros(2)],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_whatever_an_answer_returns_is_judged_and_never_right(name):
    for value in ODD:
        text = said(name, lambda *given, value=value: value)
        assert ": correct" not in text, (value, text)
        assert said(name, value)


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), SystemExit(3), KeyError("x"), AssertionError(), RecursionError("deep")],
)
def test_whatever_an_answer_raises_is_caught(error):
    def my_kl(logp, logq):
        raise error

    text = said("kl", my_kl)
    assert f"raises {type(error).__name__}" in text and text.count("\n") == 1


def test_what_differs_is_told_where_no_mistake_is_known():
    assert "Everything is 3 times" in said("loss", lambda h, beta: 3 * np.logaddexp(0, -beta * h))
    assert "too large by 0.5" in said("loss", lambda h, beta: 0.5 + np.logaddexp(0, -beta * h))
    assert "Rows and columns" in said(
        "optimum_of", lambda l, r, beta: RIGHT["optimum_of"](l, r, beta).T
    )
    assert "Hint: " in said("loss", lambda h, beta: h**2)
    assert "nan" in said("loss", lambda h, beta: h * np.nan)
    assert "an entry too few" in said("loss", lambda h, beta: h[1:])


# ---------------------------------------------------------------- hints, and the committed table
def test_hints_come_by_level(capsys):
    for level in (1, 2, 3):
        exercises.hint("kl", level)
    exercises.hint(exercises.kl)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"kl, hint {n} of 3" for n in (1, 2, 3, 1)]
    exercises.hint("optimum")
    exercises.hint("kl", 4)
    lines = capsys.readouterr().out.splitlines()
    assert "optimum_of" in lines[0] and "give 1 (the idea), 2" in lines[1] and len(lines) == 2


def test_the_committed_table_is_what_the_checks_say():
    committed = (ROOT / "notebooks" / "tables" / "exercises.txt").read_text(encoding="utf-8")
    assert exercise_answers.table() == committed, "python tests/benchmarks/exercises.py"
