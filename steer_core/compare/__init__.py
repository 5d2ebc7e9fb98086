"""Methods compared over seeds: plan, processes, tables, report."""
