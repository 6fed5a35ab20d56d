"""One training run, from the settings to the last checkpoint."""
