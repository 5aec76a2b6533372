"""Names that may have been meant, and the end of a traceback."""

import pytest

from bandpo.errors import UserError, did_you_mean, last_frames, place_of

KEYS = ["learner", "learner.lr", "learner.lora.rank", "trainer.steps", "eval.n", "eval.max_tokens"]
KEYS += ["rollout.max_tokens", "model.path"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "learner.lr"),
        ("LR", "learner.lr"),
        ("learner.steps", "trainer.steps"),
        ("trainer.step", "trainer.steps"),
        ("max_tokens", "eval.max_tokens or rollout.max_tokens"),
        ("rollout.max_token", "rollout.max_tokens"),
        ("lerner", "learner"),
        ("learner.momentum", None),
        ("", None),
    ],
)
def test_close_names_are_suggested(word, meant):
    assert did_you_mean(word, KEYS) == (f"; did you mean {meant}?" if meant else "")


def fails():
    raise LookupError("no such file")


def test_the_end_of_a_traceback_is_kept():
    try:
        fails()
    except LookupError as error:
        assert last_frames(error, 1).splitlines()[-1].strip() == 'raise LookupError("no such file")'
        assert "in fails" in last_frames(error, 1) and last_frames(error).count("File ") == 2
        assert place_of(error).startswith(f" ({__file__}, line ")
        caused = UserError.caused("the reward failed", error)
    assert "in fails" in caused.detail and str(caused) == "the reward failed"
    assert UserError.caused("step 3", caused).detail == caused.detail
