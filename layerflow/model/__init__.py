"""The network and what surrounds it: layers, objective, adapters, pipeline, sampling."""
