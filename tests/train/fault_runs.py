"""Trains several runs in one process and says how each ended. Arguments: overrides, as JSON."""

import json
import sys

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import RunHalted
from bandpo.run.host import Host
from bandpo.train import run

if __name__ == "__main__":
    with Host() as host:
        for overrides in map(json.loads, sys.argv[1:]):
            ended = {}
            try:
                run(compose("train", overrides, Config), host)
            except (RunHalted, RuntimeError) as error:
                ended = {type(error).__name__: str(error), "cause": repr(error.__cause__)}
            print("RESULT " + json.dumps(ended), flush=True)
