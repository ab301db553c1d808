"""What a notebook holds: settings, study, records, claims and exercises."""
