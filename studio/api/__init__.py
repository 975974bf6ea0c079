"""The HTTP API: models, chat and completions as OpenAI's clients ask for them, and the keys to it."""
