"""What every other room may use: errors, settings, ranks, seeds, files, the record of the machine."""
