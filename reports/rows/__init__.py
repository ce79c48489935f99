"""The rows of a store are sorted here, into the sections of a report."""
