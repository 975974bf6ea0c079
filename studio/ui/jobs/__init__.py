"""Trainings on the page: the board of all, and the page of one. `show_…` modules make HTML of records; the others are Gradio."""
