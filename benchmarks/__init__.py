"""Evidence: each script prints a table and writes it, with machine, seeds and date, as JSON."""
