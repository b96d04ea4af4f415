"""What runs and endpoints look like from outside."""
