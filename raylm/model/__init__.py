"""Presets and Hugging Face folders in, models and tokenizers out."""
