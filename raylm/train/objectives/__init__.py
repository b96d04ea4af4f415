"""What is minimised: one file for each objective, all with the same two functions."""
