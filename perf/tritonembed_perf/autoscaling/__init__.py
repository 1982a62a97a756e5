"""Servers that an autoscaler starts and stops, simulated request by request."""
