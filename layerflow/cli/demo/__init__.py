"""``layerflow demo``: the whole way once, measured."""
