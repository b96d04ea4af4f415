"""Ray outside Kubernetes."""
