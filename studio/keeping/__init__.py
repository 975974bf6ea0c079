"""Keeping what people made: backups, a check of everything that is stored, and how much room it takes."""
