"""Settings: schema, composition, checks, and which of them identify a run."""
