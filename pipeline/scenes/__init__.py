"""The embedded scenes: procedural images that show the problem the papers solve."""
