"""A run on disk: folder, checkpoints, sampled responses, trackers."""
