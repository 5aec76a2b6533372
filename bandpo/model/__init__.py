"""Models: their weights and files, their settings, and whether bandpo can compute them."""
