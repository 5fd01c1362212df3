"""Image operations that several jobs use."""
