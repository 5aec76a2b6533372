"""Where reasoning ends, in the marks of every family: an answer within it is none."""

import pytest

from bandpo.reward import MathReward, MathVerifier, ReleaseReward
from bandpo.reward.extract import Extraction, extract
from bandpo.types import Completion, Group, Problem, Prompt

# (the mark that opens, the mark that closes, the end of a prompt that opens it, that of one in
# which it is over), as the chat templates of these models write them.
FAMILIES = {
    "R1": (
        "<think>",
        "</think>",
        "<｜Assistant｜><think>\n",
        "<｜Assistant｜><think>\n\n</think>\n",
    ),
    "Qwen3": (
        *("<think>", "</think>"),
        *("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ),
    "Magistral": ("[THINK]", "[/THINK]", "[/INST][THINK]", "[/INST][THINK][/THINK]"),
    "EXAONE": ("<thought>", "</thought>", "[|assistant|]<thought>\n", "[|assistant|]"),
    "Seed": ("<seed:think>", "</seed:think>", "assistant\n<seed:think>", "assistant\n"),
    "Kimi": ("◁think▷", "◁/think▷", "<|im_middle|>◁think▷", "<|im_middle|>"),
    "Command A": (
        *("<|START_THINKING|>", "<|END_THINKING|>"),
        *("<|CHATBOT_TOKEN|><|START_THINKING|>", "<|START_THINKING|><|END_THINKING|>"),
    ),
    "Gemma 4": (
        *("<|channel>thought\n", "<channel|>"),
        *("<|turn>model\n<|channel>thought\n", "<|turn>model\n<|channel>thought\n<channel|>"),
    ),
    # Its framing tokens are not kept; those of channels are.
    "gpt-oss": (
        *("<|channel|>analysis", "assistant<|channel|>final"),
        *("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    ),
}
EARLY, LATE = r"it may be \boxed{8}", r"It is \boxed{9}."


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def test_an_answer_counts_after_the_reasoning_alone(family):
    opens, closes, asked, over = family
    for prompt, text in (
        ("What is 4+5?", f"{opens}{EARLY}{closes}{LATE}"),
        (asked, f"{EARLY}{closes}{LATE}"),
        (asked, f"{opens}{EARLY}{closes}{LATE}"),  # some write the mark once more
        (over, LATE),
        (over, f"{opens}{EARLY}{closes}{LATE}"),
    ):
        assert extract(text, prompt) == Extraction("9"), (prompt, text)


def test_reasoning_that_never_ends_has_no_answer(family):
    opens, closes, asked, over = family
    for prompt, text in (
        ("What is 4+5?", f"{opens}{EARLY}"),
        (asked, EARLY),
        (asked, f"{opens}{EARLY}"),
        (over, f"{opens}{EARLY}"),
        (asked, f"{EARLY}{closes}{LATE}{opens}{EARLY}"),  # it began again
    ):
        assert extract(text, prompt) == Extraction(None, truncated=True), (prompt, text)


def test_reasoning_that_ends_without_an_answer_has_none(family):
    opens, closes, asked, _over = family
    assert extract(f"{opens}{EARLY}{closes} I do not know.") == Extraction(None)
    assert extract(f"{EARLY}{closes}", asked) == Extraction(None)


def test_marks_in_the_middle_of_a_prompt_open_nothing():
    for prompt in (
        "Reason in <think> and </think>.\nWhat is <think>?\nassistant\n",
        "# Valid channels: <|channel|>analysis, final.\nassistant",
        "<think> " + "x" * 100,
    ):
        assert extract(EARLY, prompt) == Extraction("8")


def test_what_a_commentary_says_is_no_reply():
    text = r"<|channel|>commentary\boxed{7}"
    assert extract(text).truncated
    assert extract(text + r"assistant<|channel|>final<|message|>\boxed{9}") == Extraction("9")


@pytest.fixture(scope="module")
def reward():
    with MathReward(MathVerifier(workers=1)) as reward:
        yield reward


@pytest.mark.parametrize("cut", [True, False])
def test_the_verdict_is_truncated_however_it_ended(family, cut, reward):
    """Also where the model itself stopped: what it would have answered is not known."""
    _opens, closes, asked, _over = family
    prompt = Prompt(Problem("a", "What is 4+4?", "8"), asked, (1,))
    texts = (EARLY, f"{EARLY}{closes}{EARLY}")
    ended = "length" if cut else "stop"
    group = Group(prompt, tuple(Completion(text, (1,), (-0.5,), ended) for text in texts))
    unclosed, closed = reward.submit(group).result()
    assert (unclosed.status, unclosed.value, unclosed.extracted) == ("truncated", 0.0, None)
    assert (closed.status, closed.value, closed.extracted) == ("correct", 1.0, "8")


def test_the_releases_rule_knows_no_reasoning():
    """It reads the last 300 characters, whatever they are: that is how its numbers were made."""
    prompt = Prompt(Problem("a", "What is 4+4?", "8"), "assistant\n<think>\n", (1,))
    group = Group(prompt, (Completion("so\nAnswer: 8", (1,), (-0.5,), "length"),))
    (score,) = ReleaseReward().submit(group).result()
    assert score.status == "correct"
