"""The collectives of real ranks, whose results the test compares."""

import json

import torch

from bandpo.ranks.collectives import Ranks

with Ranks() as joined:
    results: list[dict] = []
    for ranks in (joined, joined.apart()):
        rank, size = ranks.rank, ranks.size
        # Rank r sends r + 10·s, 2 r + s times, to rank s; nothing to itself.
        leaving = [0 if other == rank else 2 * rank + other for other in range(size)]
        coming = [0 if other == rank else 2 * other + rank for other in range(size)]
        pieces = [torch.full((n,), rank + 10 * other) for other, n in enumerate(leaving)]
        integers = ranks.exchange([p.int() for p in pieces], leaving, coming, torch.int32)
        floats = ranks.exchange([p.float() + 1e-7 for p in pieces], leaving, coming, torch.float32)
        nothing = ranks.exchange([], [0] * size, [0] * size, torch.int32)
        gathered = ranks.gather_to_first({"rank": rank})
        result = {
            "rank": rank,
            "integers": integers.tolist(),
            "same": bool(torch.equal(floats, integers.float() + 1e-7)),
            "kinds": [str(t.dtype) for t in (integers, floats, nothing)],
            "device": str(integers.device),
            "nothing": len(nothing),
            "gathered": gathered,
        }
        results += joined.gather(result)
    if joined.is_first:
        print("RESULT", json.dumps(results), flush=True)
