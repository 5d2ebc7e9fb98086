"""What a run would need: memory, time, GPUs."""
