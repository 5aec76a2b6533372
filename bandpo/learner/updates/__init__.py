"""One optimizer update: its learning rate, its batch's statistics, sums over passes, result."""
