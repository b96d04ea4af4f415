"""The same run on Kubernetes: values of the charts, and what a release needs around them."""
