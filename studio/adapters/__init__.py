"""The catalog's rules: find, rename, delete, take away."""
