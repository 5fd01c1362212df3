"""``publish``: a corpus -> a dataset repository."""
