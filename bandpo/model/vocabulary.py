"""Whether a tokenizer fits its model: its tokens, and the ends of completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bandpo.config.sections.sampling import stop_ids, stop_texts
from bandpo.disk.hub import asked_once
from bandpo.errors import UserError, listed
from bandpo.types import Prompt

_ANSWER = "7316"  # an assistant's turn, to find its end in the rendered chat


def examine_tokenizer(
    path: str | Path,
    config: Any,
    tokenizer: Any,
    prompts: Iterable[Prompt],
    stops: Sequence[str | int] = (),
) -> list[str]:
    """Notes on a tokenizer to report to the user; `config` is transformers' of the model.

    `stops` are texts and token ids that end completions as well. Raises UserError where prompts
    contain tokens that the model at `path` does not have, or where nothing ends its completions.
    """
    extra = extra_tokens(tokenizer, config)
    require_known_tokens(prompts, extra)
    ends = end_tokens(path, config, tokenizer)
    if not stops:
        require_end(ends, path, extra)
    notes = (turn_note(tokenizer, ends, stops), extra_note(extra))
    return [note for note in notes if note]


def extra_tokens(tokenizer: Any, config: Any) -> dict[str, int]:
    """The tokenizer's tokens beyond the model's vocabulary, by their ids."""
    rows = config.get_text_config().vocab_size
    found = [(token, i) for token, i in tokenizer.get_vocab().items() if i >= rows]
    return dict(sorted(found, key=lambda item: item[1]))


def require_known_tokens(prompts: Iterable[Prompt], extra: dict[str, int]) -> None:
    """Raises UserError where a prompt contains a token that the embedding has no row for."""
    ids = set(extra.values())
    for prompt in prompts if ids else ():
        if found := ids & set(prompt.token_ids):
            names = [f"{name!r} ({i})" for name, i in extra.items() if i in found]
            raise UserError(
                f"the prompt of problem {prompt.problem.id!r} contains {listed(names)}, which the "
                "model does not have. Use the tokenizer that the model was saved with, or give its "
                "embedding rows for them (resize_token_embeddings)"
            )


def end_tokens(path: str | Path, config: Any, tokenizer: Any) -> dict[int, str]:
    """The ids that end a completion in every engine, with their tokens.

    They are those of the tokenizer, of generation_config.json and of config.json; engines end at
    all of them. Ids beyond the model's vocabulary do not count.
    """
    sources = (tokenizer.eos_token_id, _generation_ends(path, config), *_config_ends(path, config))
    ids = [i for source in sources for i in _as_list(source)]
    rows = config.get_text_config().vocab_size
    known = sorted({i for i in ids if isinstance(i, int) and 0 <= i < rows})
    return {i: str(tokenizer.convert_ids_to_tokens(i)) for i in known}


def _generation_ends(path: str | Path, config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        with asked_once(path):
            return GenerationConfig.from_pretrained(str(path)).eos_token_id
    except (OSError, ValueError):
        return GenerationConfig.from_model_config(config).eos_token_id


def _config_ends(path: str | Path, config: Any) -> list[Any]:
    """`eos_token_id` as written in config.json: where it lacks one, transformers makes one up."""
    with asked_once(path):
        written, _ = config.get_config_dict(str(path))
    places = (written, written.get("text_config") or {})
    return [place.get("eos_token_id") for place in places]


def _as_list(ids: Any) -> Sequence[Any]:
    return ids if isinstance(ids, list | tuple) else [ids]


def require_known_stops(stop_token_ids: Iterable[int], config: Any, key: str) -> None:
    """Raises UserError where `key` names a token id that the model never samples."""
    rows = config.get_text_config().vocab_size
    if beyond := [str(i) for i in stop_token_ids if i >= rows]:
        raise UserError(
            f"{key}: the model has tokens 0 to {rows - 1}, and no completion ends with "
            f"{listed(beyond)}"
        )


def require_end(ends: dict[int, str], path: str | Path, extra: dict[str, int]) -> None:
    """Raises UserError for a model whose completions would never end before their limit."""
    if ends:
        return
    beyond = f" (beyond the model's vocabulary: {listed(list(extra))})" if extra else ""
    raise UserError(
        f"model.path={path}: no token ends a completion: neither eos_token of "
        "tokenizer_config.json nor eos_token_id of generation_config.json or config.json is "
        f"one{beyond}, so every completion would run to rollout.max_tokens and count as truncated. "
        "Set eos_token_id in generation_config.json to the id of the token that ends the model's "
        "turn, or name stops (docs/sampling.md)"
    )


def turn_note(tokenizer: Any, ends: dict[int, str], stops: Sequence[str | int] = ()) -> str | None:
    """A note where the chat template ends a turn with a token that ends no completion."""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": _ANSWER}],
            tokenize=False,
        )
    except Exception:  # a template is the model's own program; building prompts shows its error
        return None
    _, found, ending = text.rpartition(_ANSWER)
    ids = tokenizer.encode(ending, add_special_tokens=False) if found else []
    if not ids or set(ids) & {*ends, *stop_ids(stops)}:
        return None
    if any(stop in ending for stop in stop_texts(stops)):
        return None
    special = [i for i in ids if i in tokenizer.all_special_ids]
    last = (special or ids)[0]
    known = ", ".join(f"{token!r} ({i})" for i, token in ends.items()) or "a stop"
    return (
        f"the chat template ends a turn with {tokenizer.convert_ids_to_tokens(last)!r} ({last}), "
        f"which ends no completion; {known} does. A model that ends its answers as the template "
        f"does runs on to rollout.max_tokens: set eos_token_id in generation_config.json to "
        f"{sorted({*ends, last})}"
    )


def extra_note(extra: dict[str, int]) -> str | None:
    """A note on tokens that the model does not have and no prompt contains."""
    if not extra:
        return None
    names = listed([repr(token) for token in extra])
    return f"the tokenizer has {len(extra)} token(s) that the model lacks: {names}; none is used"
