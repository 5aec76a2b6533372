"""Engines with the faults that a weight sync can have in silence, and one for a thread."""

from bandpo.rollout.hf import HFGenerate
from bandpo.rollout.vllm_local import VLLMLocal


class Stale(HFGenerate):
    """Takes the first weights and ignores all later ones."""

    def load_weights(self, weights, version):
        """Exhausts the stream, as an engine that loads it would."""
        if version == 1:
            super().load_weights(weights, version)
        else:
            for _ in weights:
                pass
            self.weight_version = version


class StaleHead(HFGenerate):
    """Loads everything but the head."""

    def load_weights(self, weights, version):
        """The head keeps what it had."""
        own = dict(self._model.named_parameters(remove_duplicate=False))
        kept = own["lm_head.weight"].detach().clone()
        super().load_weights(weights, version)
        own["lm_head.weight"].data.copy_(kept)


class InAThread(HFGenerate):
    """Samples in a thread, as if it were a process of its own."""

    samples_apart = True


class Dies:
    """Dies in its second call, as do those that replace it until there were `deaths`."""

    died = 0  # of the process

    def __init__(self, *arguments, deaths, **settings):
        super().__init__(*arguments, **settings)
        self._deaths, self._calls = deaths, 0

    def generate(self, prompts, sampling):
        """Yields a group before it dies."""
        self._calls += 1
        for group in super().generate(prompts, sampling):
            yield group
            if (self._calls == 2 or Dies.died) and Dies.died < self._deaths:
                Dies.died += 1
                raise OSError("the device fell off the bus")


class Mortal(Dies, HFGenerate):
    """The fallback engine, which dies."""


class MortalVLLM(Dies, VLLMLocal):
    """vLLM, which dies."""
