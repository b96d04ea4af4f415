"""Configurations that ship with raylm, one YAML file each."""
