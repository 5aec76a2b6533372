"""Losses of this package inside other frameworks' trainers: imported on demand, by nothing here."""
