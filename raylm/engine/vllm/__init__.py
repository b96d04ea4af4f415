"""vLLM as an engine: its scheduler and kernels, raylm's sampling and text."""
