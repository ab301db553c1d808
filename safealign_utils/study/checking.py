"""How an exercise is checked: a student's function on a few cases, and what to say of it.

The check never raises and never shows a traceback. It names the first case that fails, with what
the function gave and what was wanted, and says which of the typical mistakes gives just these
numbers. Answers may be numpy arrays, torch tensors, lists or plain numbers.
"""

import copy
import itertools
import warnings
from dataclasses import dataclass

import numpy as np

ATOL, RTOL = 1e-6, 1e-5  # how near an answer must be; float32 is near enough
LONGEST = 6  # entries of an argument that are written out
WIDEST = 100  # characters of an error or a value of the student's


@dataclass(frozen=True)
class Exercise:
    """A check, to be called with a student's function: prints one to three lines.

    `cases` are tuples of arguments, named by `arguments` (words with blanks between them).
    `answer(*case)` is right: a number, an array, a tuple of arrays, or a word. `slips` maps what is
    wrong, in words, to a function that makes this mistake. `hints` lead from the idea to the code;
    the first is printed where nothing is answered. With `zeros` what is wanted as 0 must be 0.
    """

    name: str
    arguments: str
    cases: tuple
    answer: object
    slips: dict
    hints: tuple
    title: str = ""
    zeros: bool = False

    def __call__(self, function):
        print(self.verdict(function))

    @property
    def words(self):
        """The name that is printed."""
        return self.title or self.name.replace("_", " ")

    @np.errstate(all="ignore")
    def verdict(self, function):
        """What the check says of a function, in one to three lines."""
        if not callable(function):
            call = f"exercises.{self.name}(my_function)"
            return f"{self.words}: give the function itself, {call}; got {kind(function)}"
        got = [called(function, case) for case in self.cases]
        if all(value is None for value in got):
            if is_stub(function):
                return f"{self.words}: not answered yet. Hint: {self.hints[0]}"
            return f"{self.words}: your function gives None; does it end in `return`?"
        wanted = [self.answer(*case) for case in self.cases]
        for case, mine, right in zip(self.cases, got, wanted):
            if isinstance(mine, Failure):
                return f"{self.words}: your function raises {mine.words}\n   {self._at(case)}"
            if refused := no_answer(mine, right):
                return f"{self.words}: {refused}"
            if not same(mine, right, self.zeros):
                found = difference(mine, right)
                why = self._why(got, wanted)
                return f"{self.words}: not right yet. {self._at(case)}: {found}\n   {why}"
        return f"{self.words}: correct"

    def hint(self, level):
        """The hint of a level, 1 to 3: the idea, the steps, nearly the code."""
        return f"{self.words}, hint {level} of {len(self.hints)}: {self.hints[level - 1]}"

    def _at(self, case):
        """A case in words: its arguments by name, long ones by their shape."""
        return "At " + ", ".join(written(self.arguments.split(), case))

    def _why(self, got, wanted):
        """Which mistake gives these answers; a hint where it is none of the known ones."""
        for words, slip in self.slips.items():
            made = [called(slip, case) for case in self.cases]
            if all(same(*both, nan=True) for both in zip(got, made)):
                return self._more(words)
        return self._more(unlike(got, wanted) or f"Hint: {self.hints[0]}")

    def _more(self, words):
        """Words, and where more is to be had."""
        return f'{words}. More: exercises.hint("{self.name}", 2)'


@dataclass(frozen=True)
class Failure:
    """What a student's function raised, in words."""

    words: str


# ---------------------------------------------------------------- the student's function
def called(function, case):
    """Its answer to copies of the arguments, or a `Failure`.

    A function that is written for tensors, and so fails on arrays, gets tensors.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return function(*copy.deepcopy(case))
        except (Exception, SystemExit) as error:
            first = error
        if not wants_tensors(first):
            return failure(first)
        try:
            return function(*map(as_tensor, case))
        except (Exception, SystemExit) as error:
            return failure(error)


def wants_tensors(error):
    """Whether it is the error of a function of torch that was given an array."""
    of_torch = "Tensor" in str(error) or "numpy.ndarray" in str(error)
    return isinstance(error, (TypeError, AttributeError)) and of_torch


def as_tensor(value):
    """An array as a tensor of its own; any other argument as it is."""
    import torch

    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def failure(error):
    """An error as a `Failure`: its name, and the first line of what it says."""
    text = (str(error).splitlines() or [""])[0]
    return Failure(f"{type(error).__name__}: {text}"[:WIDEST].rstrip(": "))


def is_stub(function):
    """Whether a function has no body but a docstring, or is not written in Python."""
    code = getattr(function, "__code__", None)
    return code is None or len(code.co_code) <= len(is_stub_of_its_own.__code__.co_code)


def is_stub_of_its_own():
    """A function without a body, to compare with."""


# ---------------------------------------------------------------- an answer beside the right one
def numbers(value):
    """An answer as float64, from arrays, tensors, lists and plain numbers.

    Raises TypeError for anything else.
    """
    if isinstance(value, (list, tuple)):
        value = [numbers(part) for part in value]
        if len({part.shape for part in value}) > 1:
            raise TypeError("a list of unequal lengths")
    elif hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        raise TypeError(f"no numbers: {value.dtype}")
    return value.astype(float)


def no_answer(mine, right):
    """Why an answer has the wrong type, in words; "" where it has the right one."""
    if isinstance(right, str):
        return "" if isinstance(mine, str) else f"wanted a word in quotes, got {kind(mine)}"
    if isinstance(right, tuple):
        if not isinstance(mine, (list, tuple)) or len(mine) != len(right):
            return f"wanted {len(right)} arrays, as in `return a, b`; got {kind(mine)}"
        return next(filter(None, map(no_answer, mine, right)), "")
    try:
        numbers(mine)
    except Exception:  # whatever its conversion raises: it is no number
        return f"wanted {form(np.shape(right))}, got {kind(mine)}"
    return ""


def same(mine, right, zeros=False, nan=False):
    """Whether an answer is the other one, in shape and within rounding.

    `zeros`: what is 0 must be 0; `nan`: a nan is like another one.
    """
    if isinstance(mine, Failure) or isinstance(right, Failure) or no_answer(mine, right):
        return False
    if isinstance(right, str):
        return mine.strip().lower() == right
    if isinstance(right, tuple):
        return all(same(a, b, zeros, nan) for a, b in zip(mine, right))
    mine, right = squeezed(mine, right)
    if mine.shape != right.shape:
        return False
    near = np.allclose(mine, right, rtol=RTOL, atol=ATOL, equal_nan=nan)
    return bool(near and not (zeros and (mine[right == 0] != 0).any()))


def squeezed(mine, right):
    """Both as float64; where one number is wanted, one number in brackets is that number."""
    mine, right = numbers(mine), numbers(right)
    if right.ndim == 0 and mine.size == 1:
        mine = mine.reshape(())
    return mine, right


def difference(mine, right):
    """Got and wanted in words, where they differ most."""
    if isinstance(right, str):
        return f"got {mine!r}, wanted {right!r}"
    if isinstance(right, tuple):
        part = next(k for k in range(len(right)) if not same(mine[k], right[k]))
        return f"of array {part + 1}, {difference(mine[part], right[part])}"
    mine, right = squeezed(mine, right)
    if mine.shape != right.shape:
        return f"got {form(mine.shape)}, wanted {form(right.shape)}"
    off = np.where(mine == right, 0.0, np.abs(mine - right))
    if np.allclose(mine, right, rtol=RTOL, atol=ATOL):  # what must be exactly 0
        off = np.where(right == 0, off, 0.0)
    place = np.unravel_index(np.argmax(np.nan_to_num(off, nan=np.inf)), off.shape)
    where = f"entry {[int(i) for i in place]} " if place else ""
    return f"{where}got {short(mine[place])}, wanted {short(right[place])}"


def unlike(got, wanted):
    """In what all answers differ from the right ones, where it is one simple thing; else ""."""
    if isinstance(wanted[0], (str, tuple)):
        return ""
    pairs = [(v, w) for v, w in zip(got, wanted) if not isinstance(v, Failure)]
    if any(no_answer(*both) for both in pairs):
        return ""
    pairs = [squeezed(*both) for both in pairs]
    if any(mine.shape != right.shape for mine, right in pairs):
        return unlike_in_shape(*next(p for p in pairs if p[0].shape != p[1].shape))
    mine, right = (np.hstack([np.ravel(pair[k]) for pair in pairs]) for k in (0, 1))
    return unlike_in_size(mine, right)


def unlike_in_shape(mine, right):
    """What a wrong shape tells."""
    if mine.ndim == right.ndim and mine.shape == right.shape[::-1]:
        return "Rows and columns are exchanged"
    if mine.ndim == right.ndim and abs(mine.size - right.size) == 1:
        return f"Off by one: an entry too {'many' if mine.size > right.size else 'few'}"
    return "Look at the axis of each sum and mean, and at keepdims"


def unlike_in_size(mine, right):
    """What wrong numbers tell: a sign, a factor or a constant, or no number at all."""
    if np.isnan(mine).any():
        return "A nan comes from inf - inf, 0 / 0 or 0 times inf"
    known = np.isfinite(mine) & np.isfinite(right)
    mine, right = mine[known], right[known]
    if np.allclose(mine, -right, rtol=RTOL, atol=ATOL):
        return "The sign is turned"
    if np.allclose(mine, right, rtol=RTOL, atol=ATOL):
        return "What is wanted as 0 must be exactly 0"
    if len(mine) < 2:
        return ""
    factor = (mine * right).sum() / max((right * right).sum(), 1e-300)
    if factor and np.allclose(mine, factor * right, rtol=RTOL, atol=ATOL):
        return f"Everything is {factor:.4g} times what it should be"
    shift = (mine - right).mean()
    if np.allclose(mine, right + shift, rtol=RTOL, atol=ATOL):
        return f"Everything is too {'large' if shift > 0 else 'small'} by {abs(shift):.4g}"
    return ""


# ---------------------------------------------------------------- values in words
def written(names, values):
    """Arguments in words: numbers and short arrays in full, longer ones by the shape they share."""
    pairs = zip(names, map(value_or_shape, values))
    for _, group in itertools.groupby(pairs, lambda pair: pair[pair[1].startswith("of shape")]):
        group = list(group)
        yield f"{', '.join(name for name, _ in group)} {group[0][1]}"


def value_or_shape(value):
    """A number or a short array in full, a longer one by its shape."""
    value = np.asarray(value)
    if value.ndim and not 0 < value.size <= LONGEST:
        return f"of shape {value.shape}"
    text = np.array2string(value, separator=", ", formatter={"float_kind": short})
    return text.replace("\n", "")


def form(shape):
    """A shape in words."""
    return f"numbers of shape {shape}" if shape else "a number"


def short(number):
    """A number with four digits."""
    return f"{number:.4g}"


def kind(value):
    """What somebody gave, by type and, where it is short, by value."""
    if isinstance(value, (str, int, float, bool)):
        return f"{type(value).__name__} {value!r}"[:WIDEST]
    if hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {np.shape(value)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
