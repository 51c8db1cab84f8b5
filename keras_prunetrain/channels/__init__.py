"""Follows the channels of a model: every channel has a number."""
