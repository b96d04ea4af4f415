"""Faults against trainings on real clusters, over and over, and the table of what they cost."""
