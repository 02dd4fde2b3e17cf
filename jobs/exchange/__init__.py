"""Libraries from and for other tools: formats, sources, large JSON files."""
