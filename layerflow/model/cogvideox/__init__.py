"""CogVideoX as a base: its network, noise, files and costs."""
