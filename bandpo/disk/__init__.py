"""Files that survive a kill and a full disk: written whole, locked, checksummed, cached."""
