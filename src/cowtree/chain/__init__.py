"""Chains of images: opened through one gate, loaded into values, seen as the guest sees them."""
