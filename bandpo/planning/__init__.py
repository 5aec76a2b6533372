"""Memory and time of a run on given GPUs, before it is started."""
