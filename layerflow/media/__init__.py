"""Videos and media cells: opened, decoded and encoded, trusted or in a child process."""
