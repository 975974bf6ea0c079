"""Evaluations as HTML."""
