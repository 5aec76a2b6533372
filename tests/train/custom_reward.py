"""A user's reward, as `_target_` finds it: the share of tokens from the first half of the bytes."""


def low_bytes(problem, completion) -> float:
    """Between 0 and 1."""
    tokens = completion.token_ids
    return sum(token < 130 for token in tokens) / len(tokens)
