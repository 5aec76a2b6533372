"""A hub that cannot be reached is asked once, whatever is wanted of it."""

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from bandpo.disk import hub
from bandpo.errors import UserError
from bandpo.model.source import ModelSource, load_tokenizer


@pytest.fixture
def requests(monkeypatch):
    """The addresses that were asked; none answers."""
    asked = []

    def send(self, request, **_):
        asked.append(str(request.url))
        raise OSError("Name or service not known")

    monkeypatch.setattr(type(get_session()), "send", send)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._answers.cache_clear()
    yield asked
    hub._answers.cache_clear()
    assert not constants.HF_HUB_OFFLINE


def test_a_model_that_cannot_be_had_is_asked_for_once(requests):
    source = ModelSource("nobody/nothing", "nobody/nothing")
    for ask in (source.config, source.identity, lambda: load_tokenizer(source)):
        with pytest.raises(UserError, match="model=nobody/nothing: no"):
            ask()
    assert len(requests) == 1


def test_a_folder_asks_nobody(requests, tmp_path):
    with hub.asked_once(tmp_path):
        assert not constants.HF_HUB_OFFLINE
    assert requests == []
