"""What a tokenizer says to a model: tokens that the model has, and how a completion ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bandpo.errors import UserError, listed
from bandpo.types import Prompt

_ANSWER = "7316"  # an assistant's turn to find the end of


def examine_tokenizer(
    path: str | Path, config: Any, tokenizer: Any, prompts: Iterable[Prompt]
) -> list[str]:
    """Raises UserError where prompts hold tokens that the model at `path` has not, or nothing ends
    its completions; what else to know of it.

    `config` is transformers' configuration of the model.
    """
    extra = extra_tokens(tokenizer, config)
    require_known_tokens(prompts, extra)
    ends = end_tokens(path, config, tokenizer)
    require_end(ends, path, extra)
    return [note for note in (turn_note(tokenizer, ends), extra_note(extra)) if note]


def extra_tokens(tokenizer: Any, config: Any) -> dict[str, int]:
    """The tokenizer's tokens beyond the model's vocabulary, by their ids."""
    rows = config.get_text_config().vocab_size
    found = [(token, i) for token, i in tokenizer.get_vocab().items() if i >= rows]
    return dict(sorted(found, key=lambda item: item[1]))


def require_known_tokens(prompts: Iterable[Prompt], extra: dict[str, int]) -> None:
    """Raises UserError where a prompt holds a token that the model's embedding has no row for."""
    ids = set(extra.values())
    for prompt in prompts if ids else ():
        if found := ids & set(prompt.token_ids):
            names = [f"{name!r} ({i})" for name, i in extra.items() if i in found]
            raise UserError(
                f"the prompt of problem {prompt.problem.id!r} holds {listed(names)}: the tokenizer "
                "has tokens that the model has not. Use the tokenizer that the model was saved "
                "with, or give its embedding rows for them (resize_token_embeddings)"
            )


def end_tokens(path: str | Path, config: Any, tokenizer: Any) -> dict[int, str]:
    """The ids that end a completion, with their tokens, as engines read them.

    They are the tokenizer's and those of generation_config.json, or without that file of
    config.json. Ids that the model cannot give do not count.
    """
    ids = [tokenizer.eos_token_id, *_as_list(_generation_ends(path, config))]
    rows = config.get_text_config().vocab_size
    known = sorted({i for i in ids if isinstance(i, int) and 0 <= i < rows})
    return {i: str(tokenizer.convert_ids_to_tokens(i)) for i in known}


def _generation_ends(path: str | Path, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(path)).eos_token_id
    except (OSError, ValueError):
        return GenerationConfig.from_model_config(config).eos_token_id


def _as_list(ids: Any) -> Sequence[Any]:
    return ids if isinstance(ids, list | tuple) else [ids]


def require_end(ends: dict[int, str], path: str | Path, extra: dict[str, int]) -> None:
    """Raises UserError for a model of which no completion would end before its limit."""
    if ends:
        return
    beyond = f" (beyond the model's vocabulary: {listed(list(extra))})" if extra else ""
    raise UserError(
        f"model.path={path}: no token ends a completion: neither eos_token of "
        "tokenizer_config.json nor eos_token_id of generation_config.json or config.json is "
        f"one{beyond}, so that all would run to rollout.max_tokens and be taken for cut off. Set "
        "eos_token_id in generation_config.json to the id of the token that ends the model's turn"
    )


def turn_note(tokenizer: Any, ends: dict[int, str]) -> str | None:
    """What to know where the chat template ends a turn with no token that ends a completion."""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": _ANSWER}],
            tokenize=False,
        )
    except Exception:  # a template is a program of the model's own; prompts will show its error
        return None
    _, found, ending = text.rpartition(_ANSWER)
    ids = tokenizer.encode(ending, add_special_tokens=False) if found else []
    if not ids or set(ids) & ends.keys():
        return None
    special = [i for i in ids if i in tokenizer.all_special_ids]
    last = (special or ids)[0]
    known = ", ".join(f"{token!r} ({i})" for i, token in ends.items())
    return (
        f"the chat template ends a turn with {tokenizer.convert_ids_to_tokens(last)!r} ({last}), "
        f"which ends no completion; {known} does. A model that ends its answers as the template "
        f"does runs on to rollout.max_tokens: set eos_token_id in generation_config.json to "
        f"{sorted({*ends, last})}"
    )


def extra_note(extra: dict[str, int]) -> str | None:
    """What to know of tokens that the model has not and no prompt holds."""
    if not extra:
        return None
    names = listed([repr(token) for token in extra])
    return f"the tokenizer has {len(extra)} token(s) that the model has not: {names}; none is used"
