"""OpenAI's Batch API: files of requests, answered beside everything else."""
