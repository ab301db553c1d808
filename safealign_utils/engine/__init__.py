"""What training rests on: the cache, several processes, checkpoints, LoRA, float64, streams."""
