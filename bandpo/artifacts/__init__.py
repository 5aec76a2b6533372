"""The files of a run: metrics, checkpoints, figures, and the model card."""
