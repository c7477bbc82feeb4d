"""Runs the commands that the documents show: collected, with a table of substitutions, on tiny inputs."""
