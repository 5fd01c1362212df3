"""Several processes that compute one sample together."""
