"""Base models: where they come from, what identifies them, and how they are held in memory."""
