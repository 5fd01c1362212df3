"""What jobs are given: folders, tables, sidecars and layouts, listed and read."""
