"""What the tables and figures share: which there are, their runs, raw rows, claims, pages."""
