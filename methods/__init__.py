"""This room holds the methods, one file per paper; a file's docstring is the method's card."""
