"""STEER inside other projects' trainers; each module needs that project installed, and nothing else here does."""
