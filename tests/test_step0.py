"""docs/step0.py, forty lines: the real loss on counted words. It learns manners, and no truth."""
import contextlib
import io
import re
import runpy

import pytest
from conftest import ROOT

FILE = ROOT / "docs" / "step0.py"


@pytest.fixture(scope="module")
def step0():
    """All names of the script after it ran, and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        names = runpy.run_path(str(FILE))
    return names | {"out": out.getvalue()}


def reward(step0, sentence):
    return sum(step0["weight_of"][word] for word in sentence.split())


def test_forty_lines_beat_a_coin_and_stay_far_below_the_ceiling(step0):
    accuracy, ceiling = step0["accuracy"], step0["best_accuracy"]
    assert accuracy > 0.53, "hardly better than a coin: is the sign of the loss right?"
    assert accuracy < ceiling - 0.2, "counted words cannot know what is right: is a label read?"
    assert step0["loss"] < 0.69
    assert f"{accuracy:.3f}" in step0["out"] and f"{ceiling:.3f}" in step0["out"]


def test_counted_words_learn_manners(step0):
    polite = [reward(step0, s) for s in ("Happy to help.", "Good question.", "Glad you asked.")]
    rude = [reward(step0, s) for s in ("Stop asking me.", "Stupid question.", "Leave me alone.")]
    assert min(polite) > max(rude) + 0.3, "a rude sentence pays as much as a polite one"


def test_counted_words_do_not_learn_which_answer_is_right(step0):
    # The true gap between right and wrong is 6 nats. Each answer is right as often as it is wrong.
    answers = ("green.", "white.", "sweet.", "sour.", "April.", "Paris.", "Tokyo.")
    for answer in answers:
        assert abs(reward(step0, answer)) < 0.6, f"{answer} has a weight that truth would have"


def test_the_file_stays_about_forty_lines_of_code():
    code = FILE.read_text("utf-8").split('"""', 2)[2]
    code = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if re.match(r"\s*[^\s#]", line)]
    assert len(lines) <= 50, "it is meant to be read in two minutes"
    assert max(map(len, FILE.read_text("utf-8").splitlines())) <= 100
