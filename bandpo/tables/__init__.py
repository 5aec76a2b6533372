"""Tables of runs: a recipe is planned, launched, collected and reported."""
