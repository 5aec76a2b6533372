"""Models: where their weights are, what their files say, and whether they can be computed here."""
