"""What a run leaves in its folder: metrics, checkpoints, figures, and the model card."""
