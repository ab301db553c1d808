"""Real models and real data: the hub, pairs and prompts, scorers, answers, the way to TRL."""
