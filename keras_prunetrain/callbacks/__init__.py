"""One callback per file: when to do what."""
