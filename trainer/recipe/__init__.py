"""What a stage may say beside the plain recipe: groups, hooks, loss terms, an early end."""
