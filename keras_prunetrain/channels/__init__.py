"""How channels run through a model: every channel has a number."""
