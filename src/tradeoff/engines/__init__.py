"""Engines execute something for real and meter it. An engine knows no method."""
