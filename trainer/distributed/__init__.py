"""Where the loop runs: processes, shards, signals, Ray Train."""
