"""From an uploaded file to rendered conversations with a loss mask.

reading → forms → library (Arrow) → rendering. Nothing here knows of training, of the page or of the database.
"""
