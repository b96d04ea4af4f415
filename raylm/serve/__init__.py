"""Serving: a gateway that speaks OpenAI's API, and engine replicas behind it, on Ray Serve."""
