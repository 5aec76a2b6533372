"""Whether an answer equals the reference answer; imported in worker processes only.

`bandpo.reward.notation` brings both into one spelling. `reference` tells lists, names, chains and
units apart; `reading` parses what is left, `comparison` compares it, `numeric` its values, and
`form` says whether an equal answer is finished. Of math-verify only the parser is used, and its
search for an answer in free text: its comparison rounds small factors to zero, drops left sides of
equations and ignores the case of letters.
"""

from bandpo.reward.equality.reference import Verdict, judge, self_test

__all__ = ["Verdict", "judge", "self_test"]
