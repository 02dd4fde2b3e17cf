"""SAM 2: its backend, its prompts, its decoder features, its proposals."""
