"""Reports: from the rows of a store to tables, plots and pages."""
