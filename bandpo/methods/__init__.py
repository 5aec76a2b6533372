"""Methods compared: on one token, on the tokens that a run recorded, and by their bounds."""
