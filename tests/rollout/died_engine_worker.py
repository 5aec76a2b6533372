"""An engine dies in the middle of its model and is closed while its error is held.

Arguments: folder of a policy. Prints the error's cause and what is left of the engine.
"""

import json
import sys
import traceback
import weakref

from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.scoring import EngineDied, scored_groups
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.types import Problem, Prompt

PROMPT = Prompt(Problem("p", "", ""), "", (3, 20, 21, 22), 4096)


def died(engine: VLLMLocal) -> EngineDied:
    """The error of an engine whose model fails while it generates."""
    engine._llm.apply_model(lambda model: model.register_forward_pre_hook(_fail) and None)
    try:
        list(scored_groups(engine, None, [PROMPT], Sampling(n=2, max_tokens=4)))
    except EngineDied as error:
        return error
    raise AssertionError("the engine did not die")


def _fail(model, arguments):
    raise RuntimeError("fell off the bus")


with Ranks() as ranks:
    spec = EngineSpec(sys.argv[1], max_model_len=64, ranks=ranks)
    engine = VLLMLocal(spec, max_num_seqs=8, enforce_eager=True)
    parts = {
        "llm": weakref.ref(engine._llm),
        "core": weakref.ref(engine._llm.llm_engine.engine_core),
        "model": engine._llm.apply_model(weakref.ref)[0],
    }
    error = died(engine)
    engine.close()
    left = [name for name, part in parts.items() if part() is not None]
told = "".join(traceback.format_exception(error))
result = {"cause": repr(error.__cause__), "told": "in _fail" in told, "left": left}
print(f"RESULT {json.dumps(result)}", flush=True)
