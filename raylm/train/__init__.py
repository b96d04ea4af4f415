"""Ray Train with DeepSpeed: packed shards in, a model artifact out."""
