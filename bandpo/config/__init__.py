"""Settings: their schema, composition and checks, and which of them identify a run."""
