"""A run is held here against published numbers, one by one and claim by claim."""
