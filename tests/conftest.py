"""One hypothesis profile for every test: the same examples on every run, no deadline."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")
