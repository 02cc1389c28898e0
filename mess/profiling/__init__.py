"""Measuring latencies part by part."""
