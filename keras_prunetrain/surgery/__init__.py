"""Cutting: from a plan to a smaller model, its weights and its optimizer."""
