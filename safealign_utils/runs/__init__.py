"""What executes notebooks: parameters, records, claims, the runner and the command line."""
