"""What the tables and pictures of README and docs are made with; each is a script."""
