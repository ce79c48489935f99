"""Reports make tables, plots and pages of the rows of a store."""
