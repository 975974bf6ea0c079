"""What stands around the page and the API: the wall that each request passes, and what those who run a server ask it."""
