"""Searches that cover their whole space."""
