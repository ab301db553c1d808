"""The optimum with sliders: the page says what numpy says, its script too, and it asks nobody."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from safealign_utils.runs import pages
from safealign_utils.study import by_hand
from safealign_utils.world import optimum

TEXTS = ["mind <b> & 'you'", "two </script>", "three", "four"]
LOGP, REWARD = np.log([0.1, 0.2, 0.3, 0.4]), np.array([1.5, 3.0, -1.0, 0.5])
COST = np.array([-1.0, 2.0, 0.5, 0.0])
AT = dict(beta=0.5, lam=0.25, delta=1.5)


def page(**values):
    return by_hand.by_hand(LOGP, REWARD, COST, TEXTS, prompt="a <prompt>", **values).data


def wanted(beta, lam, delta):
    """p, and E[r], E[c], P(unsafe), KL."""
    score = REWARD - lam * COST - delta * (COST > 0)
    logp = optimum.optimal(LOGP[None], score[None], beta=beta)[0]
    p = np.exp(logp)
    return p, [p @ REWARD, p @ COST, p @ (COST > 0), p @ (logp - LOGP)]


def test_the_table_is_the_optimum():
    p, means = wanted(**AT)
    text = page(**AT)
    said = re.search(r'class="means">([^<]*)<', text)[1]
    numbers = [float(n) for n in re.findall(r"(?<= )-?\d+\.\d{3}", said)]
    assert said.startswith("β = 0.5, λ = 0.25, Δ = 1.5: ")
    assert numbers == pytest.approx(means, abs=5e-4)
    ends = re.search(r'class="ends">(.*?)</p>', text)[1].split("<br>")[1:]
    assert len(ends) == 6 and ends[1].startswith("β = 2, λ = 0.25, Δ = 1.5: E[r] ")
    numbers = [float(n) for n in re.findall(r"(?<= )-?\d+\.\d{3}", ends[3])]
    assert numbers == pytest.approx(wanted(0.5, 3.0, 1.5)[1], abs=5e-4)
    rows = re.findall(r"<tr><td>([\d.]+)</td>.*?<td>([^<]*)</td></tr>", text)
    assert [float(of) for of, _ in rows] == pytest.approx(sorted(p, reverse=True), abs=5e-4)
    assert [said.endswith("[UNSAFE]") for _, said in rows] == list((COST > 0)[np.argsort(-p)])


def test_only_what_can_be_moved_or_is_not_0_is_named():
    assert re.search(r'class="means">β = 0.5: E', page(sliders=("beta",)))
    assert re.search(r'class="means">β = 0.5, λ = 0.3: E', page(sliders=("beta",), lam=0.3))


def test_texts_stay_texts_and_nobody_is_asked():
    text = page()
    assert text.count("<script>") == text.count("</script>") == 1
    assert "a &lt;prompt&gt;" in text and "mind &lt;b&gt; &amp; &#x27;you&#x27;" in text
    assert not re.search(r"https?:|src=|href=|import|fetch|XMLHttp", text)
    assert page() == text, "the same bytes each time"


def test_where_no_script_may_run_the_table_stays():
    left = pages.clean(page())
    assert "<script" not in left and "const data" not in left
    assert left.count("<tr>") == 1 + len(TEXTS) and "P(unsafe)" in left


@pytest.mark.parametrize("bad", [dict(beta=0.0), dict(lam=-1.0), dict(delta=-0.1)])
def test_values_that_have_no_optimum(bad):
    with pytest.raises(ValueError, match="beta is above 0"):
        page(**bad)


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs the script, is absent")
@pytest.mark.parametrize("at", [AT, dict(beta=2.0, lam=0.0, delta=0.0), AT | dict(beta=0.05)])
def test_the_script_computes_the_same(at):
    function = re.search(r"function optimum\(data, at\) \{.*?\n  \}", page(), re.S)[0]
    data = json.dumps({"logp": LOGP.tolist(), "r": REWARD.tolist(), "c": COST.tolist()})
    code = f"{function}\nconsole.log(JSON.stringify(optimum({data}, {json.dumps(at)})))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    found, (p, means) = json.loads(done.stdout), wanted(**at)
    assert found.pop("p") == pytest.approx(p, abs=1e-12)
    assert list(found.values()) == pytest.approx(means, abs=1e-12)
