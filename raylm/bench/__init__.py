"""Load for any OpenAI-compatible endpoint, and figures of how it was borne."""
