"""Published methods, one folder each."""
