"""What every process of the toolkit asks of the system."""
