"""The rows of a store, sorted into what a report compares."""
