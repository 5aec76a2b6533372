"""Keys of sampling that training and evaluation share: stops, and what alters the distribution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from bandpo.config.section import Section

# A command line holds no line break: there, \n in a text is one, and \\n the two characters.
_BREAK = re.compile(r"\\(\\n|n)")


def _listed(value: Any) -> Any:
    """A single stop as a list; raises ValueError for one that is neither text nor token id."""
    if value is None:
        return None
    items = list(value) if isinstance(value, list | tuple) else [value]
    if "" in items:
        raise ValueError("an empty text would end every completion at once")
    if bad := [i for i in items if not isinstance(i, str | int) or isinstance(i, bool)]:
        raise ValueError(f"{bad[0]!r} is neither a text nor a token id")
    if bad := [i for i in items if isinstance(i, int) and i < 0]:
        raise ValueError(f"{bad[0]} is no token id")
    return items


LISTED = BeforeValidator(_listed)
Stops = Annotated[tuple[str | int, ...], LISTED]
"""Texts and token ids in one list."""
STOP_DESCRIPTION = (
    "Texts and token ids that end a completion, besides the model's end-of-sequence tokens; `\\n` "
    "in a text is a line break (docs/sampling.md)."
)


def stop_texts(stops: Sequence[str | int]) -> tuple[str, ...]:
    r"""The texts of `stops`, with line breaks for `\n`."""
    texts = (item for item in stops if isinstance(item, str))
    return tuple(_BREAK.sub(lambda m: "\n" if m[1] == "n" else r"\n", text) for text in texts)


def stop_ids(stops: Sequence[str | int]) -> tuple[int, ...]:
    """The token ids of `stops`."""
    return tuple(item for item in stops if isinstance(item, int))


class AlteredSection(Section):
    """Settings that alter the sampled distribution; the defaults leave it as it is."""

    min_p: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Tokens below this share of the most probable one's probability are not "
        "sampled.",
    )
    presence_penalty: float = Field(
        0.0,
        ge=-2.0,
        le=2.0,
        description="Subtracted from the logits of tokens in the completion.",
    )
    frequency_penalty: float = Field(
        0.0,
        ge=-2.0,
        le=2.0,
        description="Subtracted from a token's logit, times its count in the completion.",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0.0,
        description="Divides positive and multiplies negative logits of tokens in prompt and "
        "completion.",
    )

    def altered(self) -> dict[str, Any]:
        """These settings by name."""
        return {name: getattr(self, name) for name in AlteredSection.model_fields}
