"""The Hugging Face hub, asked once where it cannot be reached."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def asked_once(name: str | Path) -> Iterator[None]:
    """Leaves the hub's cache alone to answer for `name` where the hub cannot be reached.

    Its client would ask five times for every file, half a minute for each. A local folder asks
    nobody.
    """
    from huggingface_hub import constants

    if Path(name).exists() or constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield
        return
    # datasets has a copy of the constant.
    places = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=10)
    except Exception as error:  # of whatever type the client's library raises
        logger.info("%s cannot be reached (%s): only its local cache is used", endpoint, error)
        return False
    return True
