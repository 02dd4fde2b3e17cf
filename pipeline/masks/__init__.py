"""Binary masks: run-length codes, overlaps, point prompts and the way between view and canonical frame."""
