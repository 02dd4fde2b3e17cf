"""The cells of the papers' tables: which there are, what they train, what came of them."""
