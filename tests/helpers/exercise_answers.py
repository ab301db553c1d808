"""Wrong answers to the exercises, as students write them, and what the check must say of each.

An answer is the body of a function whose arguments are those of the notebook's stub: one expression,
or lines that end in a `return`. None of it is taken from the package: these are the typical mistakes
of the field, and the holes that earlier checks had.
"""

import json
import re
import textwrap

import numpy as np

from . import ROOT

BISECTION = """
low, high = 0.0, 100.0
for _ in range(60):
    lam = (low + high) / 2
    w = np.exp(logp_ref + (reward - lam * cost) / beta)
    p = w / w.sum(axis=1, keepdims=True)
    low, high = (lam, high) if (p * cost).sum(axis=1).mean() > 0 else (low, lam)
return lam
"""
TOP = """
best = np.argsort(-scores, kind="stable")[:int(np.ceil(round(keep * len(scores), 9)))]
return np.isin(np.arange(len(scores)), best)
"""
FRONT = """
larger = (points[None] >= points[:, None]).all(axis=2)
strictly = (points[None] > points[:, None]).any(axis=2)
return ~(larger & strictly).any(axis=1)
"""
CLUSTERED = """
off = values - values.mean()
sums = [off[prompts == p].sum() for p in np.unique(prompts)]
return np.sqrt(np.square(sums).sum()) / len(values)
"""

# {exercise: {answer: words that the check must say}}
WRONG = {
    "kl": {
        "(np.exp(logq) * (logq - logp)).sum(axis=1).mean()": "KL(q || p)",
        "(np.exp(logp) * (logq - logp)).sum(axis=1).mean()": "sign",
        "(np.exp(logp) * (logp - logq)).sum(axis=0).mean()": "axis 1",
        "(logp * (logp - logq)).sum(axis=1).mean()": "Hint: sum p",
        "(np.exp(logp) * (logp - logq)).sum(axis=1)": "wanted a number",
    },
    "optimum_of": {
        "logp_ref + reward - np.log(np.exp(logp_ref + reward).sum(axis=1, keepdims=True))": "beta",
        "logp_ref + reward / beta": "not normalised",
        "logp_ref - reward / beta - np.log(np.exp(logp_ref - reward / beta).sum(1, keepdims=True))": "sign",
        "logp_ref + reward / beta - np.log(np.exp(logp_ref + reward / beta).sum(0))": "axis 1",
        "logp_ref + 2 * reward - np.log(np.exp(logp_ref + 2 * reward).sum(1, keepdims=True))": "beta 2",
    },
    "multiplier": {
        BISECTION.replace(" / beta", ""): "beta is missing",
        BISECTION.replace("low, high = 0.0", "low, high = -100.0"): "never below 0",
        BISECTION.replace("mean() > 0", "mean() < 0"): "other end",
        BISECTION.replace("p = w / w.sum(axis=1, keepdims=True)", "p = w / w.sum()"): "Hint",
        BISECTION.replace("range(60)", "range(5)"): "not right yet",
    },
    "loss": {
        "-np.log(1 / (1 + np.exp(-h)))": "beta",
        "np.log(1 / (1 + np.exp(-beta * h)))": "sign",
        "np.log1p(np.exp(beta * h))": "sign of h",
        "np.log1p(np.exp(-beta * h)).mean()": "not their mean",
    },
    "gradient_weight": {
        "1 / (1 + np.exp(beta * h))": "beta in front",
        "-beta / (1 + np.exp(beta * h))": "sign",
        "beta / (1 + np.exp(-beta * h))": "sign of h",
        "beta / (1 + np.exp(h))": "beta inside",
    },
    "implicit_reward": {
        "(logp - logp_ref) - (logp - logp_ref).mean(axis=1, keepdims=True)": "beta",
        "beta * (logp - logp_ref)": "mean of each row",
        "beta * (logp - logp_ref) - (beta * (logp - logp_ref)).mean(axis=0)": "axis 1",
        "beta * (logp - logp_ref) - (beta * (logp - logp_ref)).mean()": "of its own",
        "beta * (logp_ref - logp) - (beta * (logp_ref - logp)).mean(axis=1, keepdims=True)": "sign",
    },
    "transform": {
        '"drop" if u_w else "keep"': "DPO-safebetter",
        '"swap" if u_w else "keep"': "Two unsafe",
        '"keep" if u_w == u_l else "swap" if u_w else "keep"': "wanted 'drop'",
        '"keep" if u_w else "swap" if u_l else "drop"': "not right yet",
    },
    "margin": {
        "delta * (u_w - u_l)": "sign",
        "delta if u_l > u_w else 0.0": "signed",
        "delta if u_l else 0.0": "same status",
        "u_l - u_w": "delta is missing",
        "5.0 * (u_l - u_w)": "delta 0",
    },
    "safe_optimum": {
        """
        w = np.exp(logp_ref + reward / beta) * (cost < 0)
        return w / w.sum(axis=1, keepdims=True)
        """: "exactly 0 is safe",
        """
        w = np.exp(logp_ref + reward) * (cost <= 0)
        return w / w.sum(axis=1, keepdims=True)
        """: "beta",
        """
        w = np.exp(logp_ref + reward / beta)
        return w / w.sum(axis=1, keepdims=True) * (cost <= 0)
        """: "sum to 1",
        """
        w = np.exp(logp_ref + (reward - 100 * (cost > 0)) / beta)
        return w / w.sum(axis=1, keepdims=True)
        """: "must be exactly 0",
        """
        w = np.exp(logp_ref + reward / beta) * (cost <= 0)
        return w / w.sum()
        """: "not right yet",
    },
    "dual_step": {
        "max(0.0, lam - step_size * (mean_cost - limit))": "sign",
        "lam + step_size * (mean_cost - limit)": "below 0",
        "max(0.0, lam + mean_cost - limit)": "step size",
        "max(0.0, lam + step_size * mean_cost)": "limit is missing",
        "min(1.0, max(0.0, lam + step_size * (mean_cost - limit)))": "lam 3",
    },
    "label_probability": {
        "1 / (1 + np.exp(-((r + lam * c)[:, 0] - (r + lam * c)[:, 1])))": "sign",
        "1 / (1 + np.exp((r - lam * c)[:, 0] - (r - lam * c)[:, 1]))": "second one",
        "1 / (1 + np.exp(-((r - lam * c)[0] - (r - lam * c)[1])))": "columns",
        "((r - lam * c)[:, 0] > (r - lam * c)[:, 1]) * 1.0": "arg-max",
    },
    "dual": {
        "np.log(np.exp(logp_ref + (reward - lam * cost) / beta).sum(1)).mean() + lam * limit": "beta in front",
        "beta * np.log(np.exp(logp_ref + (reward - lam * cost) / beta).sum(1)).mean() - lam * limit": "sign",
        "beta * np.log(np.exp(logp_ref + (reward - lam * cost) / beta).sum(0)).mean() + lam * limit": "axis 1",
        "beta * np.log(np.exp(logp_ref + (reward - lam * cost) / beta).sum(1)).mean()": "limit's part",
    },
    "token_scores": {
        "logp_w - logp_score_w, logp_score_l - logp_l": "both sides",
        "logp_score_w - logp_w, logp_score_l - logp_l": "rejected side",
        "logp_l - logp_score_l, logp_score_w - logp_w": "exchanged",
        "np.hstack([logp_score_w - logp_w, logp_l - logp_score_l])": "wanted 2 arrays",
    },
    "top_share": {
        TOP.replace("np.ceil", "np.floor"): "Off by one",
        TOP.replace(
            "int(np.ceil(round(keep * len(scores), 9)))", "round(keep * len(scores))"
        ): "Off by one",
        "scores >= np.quantile(scores, 1 - keep)": "not right yet",
        TOP.replace("-scores", "scores"): "sign",
        TOP.replace(
            "return np.isin(np.arange(len(scores)), best)", "return np.sort(best)"
        ): "places",
        TOP.replace("round(keep * len(scores), 9)", "keep * len(scores)"): "floating point",
    },
    "advantages": {
        "prefix_values[:-1] - prefix_values[1:]": "sign",
        "np.diff(prefix_values, prepend=0.0)": "Off by one",
        "prefix_values[1:] - prefix_values.mean()": "minus the mean",
        "prefix_values[1:] - prefix_values[0]": "first prefix",
        "np.diff(prefix_values)[1:]": "Off by one",
    },
    "direction": {
        "(rejected - chosen) / np.linalg.norm(chosen - rejected)": "sign",
        "chosen - rejected": "length",
        "chosen / np.linalg.norm(chosen) - rejected / np.linalg.norm(rejected)": "two unit vectors",
        "(chosen - rejected) / np.abs(chosen - rejected).sum()": "sum of squares",
    },
    "gain": {
        """
        M = np.eye(picked.shape[1]) + picked.T @ picked / ridge
        return np.log1p(row @ np.linalg.solve(M, row))
        """: "ridge",
        """
        M = np.eye(picked.shape[1]) + picked.T @ picked
        return np.log1p(row @ np.linalg.solve(M, row))
        """: "ridge is missing",
        """
        M = np.eye(picked.shape[1]) + picked.T @ picked / ridge
        return row @ np.linalg.solve(M, row) / ridge
        """: "logarithm is missing",
        """
        M = np.eye(picked.shape[1]) + (picked + row).T @ (picked + row) / ridge
        return np.log(np.linalg.det(M))
        """: "not right yet",
    },
    "first_front": {
        "~(points[None] > points[:, None]).all(axis=2).any(axis=1)": "already",
        FRONT.replace(">", "<"): "sign",
        "~((points[None] >= points[:, None]).all(axis=2) & ~np.eye(len(points), dtype=bool)).any(axis=1)": "equal points",
        "points.sum(axis=1) == points.sum(axis=1).max()": "largest sum",
    },
    "labels_needed": {
        "(unsafe[:, 0] == unsafe[:, 1]) * 1": "dropped",
        "(unsafe.sum(axis=1) < 2) * 1": "without asking",
        "(unsafe.sum(axis=1) > 0) * 1": "sign",
        "(unsafe.sum(axis=0) == 0) * 1": "axis 1",
    },
    "interaction": {
        "(y[1, 1] - y[1, 0]) - (y[0, 1] - y[0, 0])": "half",
        "((y[0, 1] - y[0, 0]) - (y[1, 1] - y[1, 0])) / 2": "sign",
        "((y[0, 1] - y[0, 0]) + (y[1, 1] - y[1, 0])) / 2": "second lever",
        "y[1, 1] - y[0, 0]": "both levers",
    },
    "margin_optimum": {
        """
        w = np.exp(logp_ref + (reward - delta * cost) / beta)
        return w / w.sum(axis=1, keepdims=True)
        """: "size of c",
        """
        w = np.exp(logp_ref + reward / beta - delta * (cost > 0))
        return w / w.sum(axis=1, keepdims=True)
        """: "divided by beta too",
        """
        w = np.exp(logp_ref + (reward - delta * (cost >= 0)) / beta)
        return w / w.sum(axis=1, keepdims=True)
        """: "exactly 0",
        """
        w = np.exp(logp_ref + (reward + delta * (cost > 0)) / beta)
        return w / w.sum(axis=1, keepdims=True)
        """: "sign",
    },
    "win_rate": {
        "(mine > other).mean()": "tie",
        "(mine >= other).mean()": "tie",
        "((mine < other) + 0.5 * (mine == other)).mean()": "other one",
        "(mine > other).sum() / (mine != other).sum()": "left out",
    },
    "true_share": {
        "(measured - false_alarm) / (1 - false_alarm - missed)": "exchanged",
        "measured / (1 - false_alarm - missed)": "still in",
        "measured * (1 - false_alarm) + (1 - measured) * missed": "other way",
        "measured + false_alarm - missed": "errors",
    },
    "clustered_error": {
        "values.std(ddof=1) / np.sqrt(len(values))": "independent",
        CLUSTERED.replace("len(values)", "len(sums)"): "not of prompts",
        CLUSTERED.replace("off = values - values.mean()", "off = values"): "mean",
        CLUSTERED.replace(
            "np.sqrt(np.square(sums).sum()) / len(values)", "np.std(sums) / len(values)"
        ): "not right yet",
    },
    "restriction": {
        "logp - np.log(np.exp(logp).sum(axis=1, keepdims=True))": "largest",
        "logp - np.logaddexp.reduce(logp, axis=0)": "axis 1",
        "np.exp(logp - np.logaddexp.reduce(logp, axis=1)[:, None])": "probabilities",
        "logp - np.max(logp, axis=1, keepdims=True)": "sum to 1",
    },
    "log_ratio_difference": {
        "(theta - ref)[:, j] - (theta - ref)[:, i]": "sign",
        "theta[:, i] - theta[:, j]": "reference is missing",
        "theta[i] - ref[i] - theta[j] + ref[j]": "axis",
        "(theta - ref)[:, 0] - (theta - ref)[:, 2]": "i 3",
    },
    "change_of_mass": {
        "np.logaddexp.reduce(ref, axis=1) - np.logaddexp.reduce(theta, axis=1)": "sign",
        "(theta - ref).mean(axis=1)": "two sums",
        "np.logaddexp.reduce(theta, axis=0) - np.logaddexp.reduce(ref, axis=0)": "axis 1",
        "np.log(np.exp(theta).sum(axis=1)) - np.log(np.exp(ref).sum(axis=1))": "largest",
    },
}


def function_of(source, stub):
    """A function from a student's source, with the name and the arguments of the notebook's stub."""
    source = textwrap.dedent(source).strip()
    body = source if re.search(r"^\s*return ", source, re.M) else f"return {source}"
    space = {"np": np}
    exec(f"{stub}\n{textwrap.indent(body, '    ')}", space)
    return space[re.match(r"def (\w+)", stub)[1]]


def broken(name, stub):
    """Two answers that are none: of the wrong type, and one that raises; with what must be said."""
    first = re.search(r"\((\w+)", stub)[1]
    wrong_type = ("1", "wanted a word") if name == "transform" else ('"0.5"', "wanted ")
    return {wrong_type[0]: wrong_type[1], f"np.logsumexp({first})": "raises AttributeError"}


def code_cells(folder):
    """(stem, source, output text) of the code cells of all notebooks of a folder."""
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
                yield path.stem, "".join(cell["source"]), text


def exercise_cells(folder):
    """{exercise: (its cell's source, its output)} of the notebooks of a folder."""
    call = re.compile(r"^exercises\.(\w+)\(my_\w+\)$", re.M)
    cells = [(call.search(source), source, text) for _, source, text in code_cells(folder)]
    return {found[1]: (source, text) for found, source, text in cells if found}


NOTEBOOKS = ROOT / "notebooks"


def stubs():
    """{exercise: the `def` line of its stub}, from the numbered notebooks."""
    cells = exercise_cells(NOTEBOOKS)
    return {name: re.search(r"^def .*:$", source, re.M)[0] for name, (source, _) in cells.items()}


def solutions():
    """{exercise: the function of the solutions notebook}, each notebook's cells run in order."""
    out, spaces = {}, {}
    for stem, source, _ in code_cells(NOTEBOOKS / "solutions"):
        space = spaces.setdefault(stem, {})
        exec(source, space)
        if found := re.search(r"^exercises\.(\w+)\((my_\w+)\)$", source, re.M):
            out[found[1]] = space[found[2]]
    return out


# ---------------------------------------------------------------- what the checks say, as a text
def table():
    """For every exercise the right answer, wrong ones and broken ones, each with what the check says."""
    from safealign_utils.study import exercises

    right, defs, out = solutions(), stubs(), [HEAD]
    for name, check in exercises.EXERCISES.items():
        out.append(f"\n== {name}: {defs[name]}")
        out.append(entry("right", "the solutions notebook", check.verdict(right[name])))
        for source in WRONG[name]:
            out.append(entry("wrong", source, check.verdict(function_of(source, defs[name]))))
        for source in broken(name, defs[name]):
            out.append(entry("broken", source, check.verdict(function_of(source, defs[name]))))
        out += [check.hint(level) for level in (1, 2, 3)]
    return "\n".join(out) + "\n"


HEAD = """What the checks of the exercises say: for each the solution, typical wrong answers and two broken
ones (of the wrong type, and one that raises), with the check's own words behind ">", then its three hints.
Made by `python tests/benchmarks/exercises.py`; a test holds it against the code."""


def entry(word, source, verdict):
    """An answer and what is said of it, as lines."""
    lines = textwrap.dedent(source).strip().splitlines()
    answer = "\n".join(f"{word if k == 0 else '':<8}{line}" for k, line in enumerate(lines))
    return "\n".join([answer, *(f"      > {line.strip()}" for line in verdict.splitlines())])
