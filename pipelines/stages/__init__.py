"""One file a stage: plain functions, usable and tested without Ray."""
