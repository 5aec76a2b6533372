"""One optimizer update: its learning rate, statistics of its batch, sums over its passes, result."""
