"""Files that outlive a kill and a full disk: whole or not at all, locked, sealed, cached."""
