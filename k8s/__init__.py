"""What stands before a release on Kubernetes, and a Kubernetes to try it on."""
