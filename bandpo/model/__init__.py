"""What a model's own files say of it, and whether this project can compute it as it is meant."""
