"""LightningModules and, beside each, its pure networks."""
