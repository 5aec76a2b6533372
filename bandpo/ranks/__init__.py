"""The processes of one job and their exchanges; this file must import nothing."""
