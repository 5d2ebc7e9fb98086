"""The `steer` command, a file a command."""
