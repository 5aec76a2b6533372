"""Problems and prompts: sources, benchmarks, cleaning, templates, and the sampler."""
