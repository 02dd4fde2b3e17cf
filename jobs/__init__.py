"""Commands, Ray scheduling and configuration: the only part that starts work."""
