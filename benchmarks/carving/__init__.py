"""What the demo model's carving was made by, once; see carve.py."""
