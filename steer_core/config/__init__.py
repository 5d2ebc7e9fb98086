"""Every setting of a run, typed and checked."""
