"""Losses: pure functions and modules on tensors."""
