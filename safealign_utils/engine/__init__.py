"""What training and evaluation rest on: the cache, several processes, checkpoints, LoRA, float64."""
