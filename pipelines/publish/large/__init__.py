"""What a publication of terabytes takes: tasks on all nodes, and a switch that is one step."""
