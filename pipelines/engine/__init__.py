"""How any job runs: units, workers, staging, the cluster."""
