"""An engine that breaks where nobody expects it."""

from bandpo.rollout.hf import HFGenerate


class FailingEngine(HFGenerate):
    """Takes no weights."""

    def load_weights(self, weights, version):
        raise RuntimeError("the engine takes no weights")
