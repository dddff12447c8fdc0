"""What people touch on a terminal: words into calls, values into text."""
