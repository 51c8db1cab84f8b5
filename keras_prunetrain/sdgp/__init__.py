"""Backward passes from gradients of which n of every m channels are kept."""
