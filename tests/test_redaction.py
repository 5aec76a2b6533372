"""Secrets are hidden by name and by value; everything else is left as it is."""

import logging
import time

import pytest

from bandpo.redaction import HIDDEN, RedactingFormatter, is_secret, redact, redacted


@pytest.mark.parametrize(
    "name",
    [
        *("VLLM_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "hub_token", "token", "password"),
        *("AWS_SECRET_ACCESS_KEY", "client.secret", "apikey", "Authorization"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "micro_batch_tokens", "tokenizer", "monkey", "key", "seed", "tokens"]
)
def test_names_of_settings(name):
    assert not is_secret(name)


def test_a_tree_keeps_all_but_its_secrets(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abc123xyz")
    tree = {
        "engine": {"api_key": "k", "urls": ["http://user:pw@host:1/x"], "timeout_s": 3.0},
        "token": None,
        "note": "uses abc123xyz",
        "max_tokens": 5,
    }
    assert redacted(tree) == {
        "engine": {"api_key": HIDDEN, "urls": [f"http://{HIDDEN}@host:1/x"], "timeout_s": 3.0},
        "token": None,
        "note": f"uses {HIDDEN}",
        "max_tokens": 5,
    }


def test_text_loses_values_of_the_environment_and_known_keys(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "a")  # no key is so short
    assert redact("a correct horse and hf_" + "x" * 30) == f"a {HIDDEN} and {HIDDEN}"


def test_overrides_lose_the_values_of_secret_settings():
    command = "bandpo train rollout.engine.api_key=abc rollout.max_tokens=64 +a={token=x, seed=1}"
    assert redact(command) == (
        f"bandpo train rollout.engine.api_key={HIDDEN} rollout.max_tokens=64 "
        f"+a={{token={HIDDEN}, seed=1}}"
    )


def test_a_log_record_is_redacted_with_its_traceback(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "verysecret")
    try:
        raise ValueError("bad verysecret")
    except ValueError as error:
        record = logging.LogRecord(
            "x", 40, "f", 1, "for %s", ("verysecret",), (type(error), error, None)
        )
    text = RedactingFormatter().format(record)
    assert "verysecret" not in text and text.count(HIDDEN) == 2


def test_a_text_without_an_end_of_words_takes_no_longer_than_reading_it():
    """A model that repeats one letter would otherwise hold up who shows its samples."""
    begin = time.process_time()
    text = "x" * 200_000
    assert redact(f"{text} api_key=hunter2hunter2") == f"{text} api_key=(hidden)"
    assert time.process_time() - begin < 2
