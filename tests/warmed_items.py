"""What a worker of the pool loads at a cost before its first item; see `test_workers.py`."""

from hostile_items import burn

LOADED = []


def warm_up():
    """Take more processor time than the pool's items have."""
    LOADED.append(burn(2.0))


def loads(_):
    """How often this process has warmed up, after some work of its own."""
    burn(0.7)
    return len(LOADED)
