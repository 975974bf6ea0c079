"""How good voices are on a dataset of the user's: losses, and answers that are held to the dataset's own."""
