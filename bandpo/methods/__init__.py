"""Methods compared: on one token, on a run's records, and in figures."""
