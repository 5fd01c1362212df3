"""The `layerflow` console script: one file a command group, everything heavy imported lazily."""
