"""Models as an evaluation sees them: weights in a folder, or an endpoint's name."""
