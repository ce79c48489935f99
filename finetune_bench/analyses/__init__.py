"""The built-in analyses: each file holds one, and registers as a stranger's does."""
